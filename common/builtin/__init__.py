"""The built-in parts: the whole workflow without a key, a GPU, a hub or a network.

The three are small but real, and speak through the same seams as the parts they stand in for:

* `sentences` and `mistakes`: a data set of grammatical error correction over a made-up grammar,
  from a seed;
* `teacher`: an HTTP server on loopback that corrects by the rules of `correction`, from the input
  alone;
* `student/`: a Llama-architecture model of 2 M parameters made from scratch by
  `python -m tests.benchmarks.pretrain`.
"""

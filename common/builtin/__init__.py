"""The built-in parts, which run the whole workflow without a key, a GPU, a hub or a network.

* `sentences` and `mistakes`: a data set of grammatical error correction over a made-up grammar;
* `teacher`: an HTTP server on loopback that corrects by the rules of `correction`;
* `student/`: a Llama model of 2 M parameters, made by `python -m tests.benchmarks.pretrain`.
"""

import huggingface_hub
import pytest
from huggingface_hub.utils import _http

from common.errors import DistillError, InputError
from common.run.manifest import read_manifest, write_manifest
from common.run.run import open_run
from common.run.steps import ADAPTER, GGUF, MERGED, PREDICTIONS
from common.run.storage import RunStorage
from common.student.prompt import load_tokenizer
from common.training.publish import push
from support.fake_hub import running_hub


def set_endpoint(monkeypatch, url):
    """As HF_ENDPOINT does, which is read when the library is imported."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        set_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


@pytest.fixture
def published(settings):
    """A run with an adapter."""
    own = settings(TRAIN__PUSH_TO="someone/grammar")
    storage = RunStorage(own)
    for name in ("README.md", "adapter_model.safetensors"):
        storage.write_bytes(f"adapter/{name}", name.encode())
    files = ["adapter/README.md", "adapter/adapter_model.safetensors"]
    write_manifest(storage, ADAPTER, {"n": 1}, files=files)
    return open_run(own)


def test_the_adapters_files_are_published_in_a_private_repository(hub, published):
    push(published)
    assert hub.created["visibility"] == "private"
    assert (hub.created["organization"], hub.created["name"]) == ("someone", "grammar")
    assert {n: c.decode() for n, c in hub.files.items()} == {n: n for n in hub.files}
    assert hub.files.keys() == {"README.md", "adapter_model.safetensors"}
    # huggingface_hub asks for a list of agents, too, once a day and without the token
    sent = {token for path, token in hub.tokens if not path.endswith("/api/agent-harnesses")}
    assert sent == {"Bearer hf_secret"}, hub.tokens


METRICS = {
    "task": "gec",
    "main_metric": "exact_match",
    "metrics": {"exact_match": {"title": "Exact match", "is_share": True}},
    "rows": {"test": 1234},
    "systems": {
        "teacher": {"exact_match": {"value": 0.8, "n": 1234, "interval": [0.776, 0.821]}},
        "distilled": {"exact_match": {"value": 0.7, "n": 1234, "interval": [0.674, 0.725]}},
        "unknown": {"exact_match": {"value": None}},
    },
}


def add_exports(storage, **fingerprint):
    """Those of the adapter, or of another one."""
    for step in (MERGED, GGUF):
        name = f"{step.folder}/a.file"
        storage.write_bytes(name, step.folder.encode())
        write_manifest(storage, step, {"n": 1} | fingerprint, files=[name])


def test_exports_are_published_in_folders(hub, published):
    add_exports(published.storage)
    push(published)
    adapter = {"README.md", "adapter_model.safetensors"}
    assert hub.files.keys() == adapter | {"merged/a.file", "gguf/a.file"}
    assert hub.files["gguf/a.file"] == b"gguf"


def test_exports_of_another_adapter_are_left_out(hub, published):
    add_exports(published.storage, n=2)
    push(published)
    assert hub.files.keys() == {"README.md", "adapter_model.safetensors"}


def test_once_evaluated_the_card_has_the_figures(hub, published):
    push(published)
    assert hub.files["README.md"] == b"README.md"
    storage = published.storage
    storage.write_json("metrics.json", METRICS)
    write_manifest(storage, PREDICTIONS, {"adapter": read_manifest(storage, ADAPTER).identity})
    push(published)
    card = hub.files["README.md"].decode()
    assert "On 1,234 test rows" in card
    assert "| distilled | 70.0% | 67.4%–72.5% |\n" in card
    assert "unknown" not in card
    push(published)  # from the card of the run, which stays
    assert hub.files["README.md"].decode() == card
    write_manifest(storage, PREDICTIONS, {"adapter": "an earlier one"})
    push(published)
    assert hub.files["README.md"] == b"README.md"


def test_a_refusal_of_the_hub_names_the_setting_and_not_the_key(hub, published):
    hub.refusal = 403
    with pytest.raises(InputError, match=r"DISTILL_TRAIN__PUSH_TO='someone/grammar'.*403") as info:
        push(published)
    assert "hf_secret" not in str(info.value)


def test_a_hub_that_is_out_of_order_keeps_the_adapter_for_another_try(hub, published):
    hub.refusal = 500
    with pytest.raises(DistillError, match=r"DISTILL_TRAIN__PUSH_TO='someone/grammar'") as info:
        push(published)
    assert info.value.exit_code == 1


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_out_of_order_is_worth_another_try(hub, settings, status):
    hub.refusal = status
    with pytest.raises(DistillError, match="could not be fetched") as info:
        load_tokenizer(settings(STUDENT__MODEL="someone/student"))
    assert info.value.exit_code == 1


def test_a_hub_that_does_not_answer_is_worth_another_try(hub, settings, monkeypatch):
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(DistillError, match="could not be fetched") as info:
        load_tokenizer(settings(STUDENT__MODEL="someone/student"))
    assert info.value.exit_code == 1


def test_a_student_that_the_hub_does_not_have_is_bad_input(hub, settings):
    hub.refusal = 404
    with pytest.raises(InputError, match="someone/student"):
        load_tokenizer(settings(STUDENT__MODEL="someone/student"))

"""What a pipeline writes, another reads: the same images."""

import pytest
import torch

import dit

DRAW = dict(num_inference_steps=2, guidance_scale=2.0, output_type="pt", precision="fp32")


@pytest.mark.parametrize("format", ["dit", "diffusers"])
def test_a_saved_pipeline_makes_the_same_images(weights, tmp_path, format):
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    folder = pipe.save_pretrained(tmp_path / "saved", format=format)
    again = dit.Pipeline.from_pretrained(folder, "cpu")
    assert torch.equal(pipe([1, 7], **DRAW).images, again([1, 7], **DRAW).images)
    assert again.classes == pipe.classes


def test_other_formats_are_refused(weights, tmp_path):
    with pytest.raises(dit.UserError, match="format 'onnx'"):
        dit.Pipeline.from_pretrained(weights, "cpu").save_pretrained(tmp_path / "a", format="onnx")


def test_push_to_hub_passes_on_what_was_given(weights, monkeypatch):
    given = {}

    def push(run, repo_id, **others):
        given.update(run=run, repo_id=repo_id, **others)
        return "address"

    monkeypatch.setattr("dit.export.hub.push_to_hub", push)
    pipe = dit.Pipeline.from_pretrained(weights, "cpu")
    settings = dict(private=True, token="t", license="mit")
    assert pipe.push_to_hub("owner/name", **settings) == "address"
    assert given == dict(run=pipe.run, repo_id="owner/name", **settings)

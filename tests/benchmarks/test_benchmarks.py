"""What benchmarks write down, and what they call it."""

import json

import pytest
import torch

from benchmarks import ceilings, record, sampling_rate, training_speed
from benchmarks.arguments import pattern
from benchmarks.kernels import kind_of


def test_results_of_another_command_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    files = [
        record.record("speed", command, {"rows": rows}, [command])
        for command, rows in (("whole", 1), ("whole", 2), ("part", 3), ("whole", 4))
    ]
    assert files == [files[0], files[0], files[2], files[0]]
    assert [json.loads(file.read_text())["results"]["rows"] for file in (files[0], files[2])] == [
        4,
        3,
    ]
    assert [file.with_suffix(".md").read_text() for file in (files[0], files[2])] == [
        "whole\n",
        "part\n",
    ]


def test_a_copy_tells_the_commit_that_it_is_of(monkeypatch):
    monkeypatch.setenv("DIT_COMMIT", "1234abc")
    assert record.commit() == "1234abc"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "products"),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("void cudnn::fusion::compute_dot_do_o<true>(void const*, void const*)", "attention"),
        (
            "triton_red_fused__to_copy_add_mul_native_layer_norm_backward_split_unsqueeze_view_14",
            "compiled code",
        ),
        (
            "void at::native::multi_tensor_apply_kernel<at::native::FusedAdamMathFunctor>",
            "optimizer and average",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::reduce_kernel<128, 4>", "others"),
    ],
)
def test_kernels_have_kinds(kernel, kind):
    assert kind_of(kernel) == kind


def test_rows_are_chosen_by_pattern():
    patterns = [pattern("XL/2 x128 (dit|plain)"), pattern("B/2")]
    chosen = training_speed.chosen(
        training_speed.possible(training_speed.CUDA, None, fp8=False), patterns
    )
    assert training_speed.names_of(chosen) == [
        "DiT-XL/2 x128 plain tf32 eager",
        "DiT-XL/2 x128 dit bf16 compiled",
        "DiT-B/2 x256 dit bf16 compiled by block",
        "DiT-XL/2 x128 dit bf16 compiled by block",
        "DiT-XL/2 x128 dit bf16 eager",
    ]


def test_calls_in_a_row_fill_a_while_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(ceilings, "settle", lambda device: None)
    monkeypatch.setattr(
        ceilings.time, "perf_counter", iter(range(4)).__next__
    )  # a call takes a second
    counts = [ceilings.calls_of(lambda: None, torch.device(kind)) for kind in ("cuda", "cpu")]
    assert counts == [ceilings.WHILE, 1]


@pytest.mark.parametrize(
    ("module", "flags", "told"),
    [
        (training_speed, ["--only", "nothing like it"], "rows are"),
        (sampling_rate, ["--only", "nothing like it"], "rows are"),
        (sampling_rate, ["--only", "("], "a regular expression expected"),
        (sampling_rate, ["--rounds", "0"], "a number above 0 expected"),
        (training_speed, ["--batch", "-2"], "a number above 0 expected"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(module, flags, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--tiny", *flags])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err

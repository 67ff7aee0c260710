"""Result files, row selection and kernel names of the benchmarks."""

import json

import pytest
import torch

from benchmarks import ceilings, record, sampling_rate, training_speed
from benchmarks.arguments import regex
from benchmarks.kernels import kind_of


def test_results_of_another_command_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    files = [
        record.record("speed", command, {"rows": rows}, [command])
        for command, rows in (("full", 1), ("full", 2), ("part", 3), ("full", 4))
    ]
    full, part = files[0], files[2]
    assert files == [full, full, part, full]
    assert full != part

    for file, command, rows in ((full, "full", 4), (part, "part", 3)):
        assert json.loads(file.read_text())["results"]["rows"] == rows
        assert file.with_suffix(".md").read_text() == f"{command}\n"


def test_the_environment_overrides_the_commit(monkeypatch):
    monkeypatch.setenv("DIT_COMMIT", "1234abc")
    assert record.commit() == "1234abc"


def test_mfu_is_of_the_fastest_arithmetic():
    """Some processors multiply bf16 slower than float32, and a copy is no product."""
    assert ceilings.fastest_products({"bf16": 1.0, "fp32": 60.0, "copy": 100.0}) == 60
    assert ceilings.fastest_products({"bf16": 70.0, "fp32": 60.0, "copy": 100.0}) == 70


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
def test_kernels_are_sorted_by_kind(kernel, kind):
    assert kind_of(kernel) == kind


def test_rows_are_selected_by_pattern():
    patterns = [regex("XL/2 x128 (dit|plain)"), regex("B/2")]
    supported = training_speed.supported(training_speed.CUDA, None, fp8=False)
    assert training_speed.row_names(training_speed.select(supported, patterns)) == [
        "DiT-XL/2 x128 plain tf32 eager",
        "DiT-XL/2 x128 dit bf16 compiled",
        "DiT-XL/2 x128 dit modern bf16 compiled",
        "DiT-B/2 x256 dit bf16 compiled by block",
        "DiT-XL/2 x128 dit bf16 compiled by block",
        "DiT-XL/2 x128 dit bf16 eager",
    ]


def test_rows_of_modern_blocks_count_their_own_flops(monkeypatch):
    """Conditioning by tokens has 12 more of them in each image, but no adaLN."""
    variants = [training_speed.DIT, training_speed.DIT.modern(conditioning="tokens")]
    assert variants[1].title == "dit modern tokens bf16 compiled"
    measured = [(variant, {"seconds": 1.0}) for variant in variants]
    monkeypatch.setattr(training_speed, "measure", lambda *_: measured)
    plan = [("DiT-S/8", 4, variants)]
    plain, tokens = training_speed.measure_rows(plan, 1, torch.device("cpu"), 1e12, None)
    assert plain["mfu"] < tokens["mfu"] < 2 * plain["mfu"]


@pytest.mark.parametrize(("device", "calls"), [("cuda", ceilings.TIMED_SECONDS), ("cpu", 1)])
def test_only_a_gpu_times_several_calls_in_a_row(device, calls, monkeypatch):
    monkeypatch.setattr(ceilings, "synchronize", lambda device: None)
    # each call takes a second
    monkeypatch.setattr(ceilings.time, "perf_counter", iter(range(4)).__next__)
    assert ceilings.calls_per_timing(lambda: None, torch.device(device)) == calls


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (training_speed, ["--only", "nothing like it"], "rows are"),
        (sampling_rate, ["--only", "nothing like it"], "rows are"),
        (sampling_rate, ["--only", "("], "a regular expression expected"),
        (sampling_rate, ["--rounds", "0"], "a number above 0 expected"),
        (training_speed, ["--batch", "-2"], "a number above 0 expected"),
    ],
)
def test_mistakes_end_before_anything_is_measured(module, flags, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--tiny", *flags])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err

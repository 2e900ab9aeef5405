"""What .ci/check-cuda reads out of a disassembly, and the arithmetic of the predictions made of it."""

import importlib.machinery
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / ".ci" / "check-cuda"
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="tests run without the checkout")


@pytest.fixture(scope="module")
def check():
    loader = importlib.machinery.SourceFileLoader("check_cuda", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("check_cuda", loader))
    sys.modules["check_cuda"] = module
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def predictions(check):
    return check.predictions


# y = a x, two accesses of 16 bytes at a time, and a loop of single accesses for the remainder.
SCALE = """
		Function : scale
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
                                                                           /* 0x000ff00000000800 */
        /*0010*/                   BSSY B0, 0x350 ;
        /*00d0*/               @P0 BRA 0x340 ;
        /*0120*/                   BSSY B1, 0x330 ;
        /*0190*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*01a0*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x1000] ;
        /*01e0*/                   IADD3 R13, P3, R13, 0x300, RZ ;
        /*01f0*/                   ISETP.GE.U32.AND P0, PT, R12, UR6, PT ;
        /*0270*/                   FMUL R7, R7, UR12 ;
        /*0280*/                   FMUL R6, R6, UR12 ;
        /*0290*/                   FMUL R5, R5, UR12 ;
        /*02a0*/                   FMUL R4, R4, UR12 ;
        /*02b0*/                   FMUL R11, R11, UR12 ;
        /*02c0*/                   FMUL R10, R10, UR12 ;
        /*02d0*/                   FMUL R9, R9, UR12 ;
        /*02e0*/                   FMUL R8, R8, UR12 ;
        /*02f0*/                   STG.E.128 desc[UR4][R14.64+-0x1000], R4 ;
        /*0300*/                   STG.E.128 desc[UR4][R14.64], R8 ;
        /*0310*/              @!P0 BRA 0x190 ;
        /*0320*/                   BSYNC B1 ;
        /*0330*/                   IMAD.MOV.U32 R10, RZ, RZ, R0 ;
        /*0340*/                   BSYNC B0 ;
        /*0350*/                   ISETP.GE.U32.AND P0, PT, R13, UR6, PT ;
        /*0370*/               @P0 EXIT ;
        /*0430*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*04a0*/                   FSETP.GT.AND P0, PT, R4, UR8, PT ;
        /*04b0*/               @P0 FMUL R5, R5, UR8 ;
        /*04d0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0510*/              @!P0 BRA 0x430 ;
        /*0520*/                   EXIT ;
        /*0530*/                   BRA 0x530;
"""


def code(check, lines):
    """The instructions of lines such as "@P0 BRA 0x20"; line i is at address 16 i."""
    text = "\n".join(f"        /*{16 * i:04x}*/   {line} ;" for i, line in enumerate(lines))
    return check.parse_disassembly("Function : f\n" + text)["f"]


def normalize(check, disassembly, **facts):
    signature = "void genimg_fast::cuda::normalize<float, 4, 1, 1, true>(genimg_fast::cuda::Tiling)"
    facts = {"registers": 40, "threads": 256} | facts
    kernel = check.Kernel("csrc/cuda/batch_norm_act.cu", "scale", signature, **facts)
    kernel.code = check.parse_disassembly(disassembly)["scale"]
    return kernel


def test_the_main_loop_is_counted_and_not_the_remainders(check):
    (row,) = check.rows_of(normalize(check, SCALE))
    assert (row.kernel, row.dtype, row.layout, row.role) == ("normalize<relu, plain>", "float32", "NCHW", "load")
    assert (row.instructions, row.elements, row.per_element) == (15, 8, 15 / 8)
    assert row.bytes_in_flight == 6 * 256 * 2 * 16


def test_loops_are_those_that_the_program_can_reach(check):
    blocks = check.blocks_of(check.parse_disassembly(SCALE)["scale"])
    heads = sorted(blocks[loop.head].instructions[0].address for loop in check.loops_of(blocks))
    assert heads == [0x190, 0x430]  # not the padding behind the end


def test_an_iteration_is_the_longest_path_without_divergent_reruns(check):
    instructions = code(
        check,
        [
            "LDG.E.128 R4, desc[UR4][R2.64]",  # 0x00, head
            "BSSY B0, 0x60",
            "@!P0 BRA 0x50",
            "FADD R1, R1, R4",
            "FADD R1, R1, R5",
            "BSYNC B0",  # 0x50
            "BRA.DIV UR4, 0xa0",  # 0x60
            "SHFL.BFLY PT, R3, R1, 0x1, 0x1f",
            "@P1 BRA 0x0",
            "EXIT",
            "FADD R9, R9, R9",  # 0xa0: the shuffle again, for warps that diverged
            "FADD R9, R9, R9",
            "BRA 0x80",
        ],
    )
    blocks = check.blocks_of(instructions)
    (loop,) = check.loops_of(blocks)
    counted = check.iteration(blocks, loop)
    assert counted["instructions"] == 9
    assert counted["LDG.16"] == 16


def test_inner_loops_count_as_often_as_they_run(check):
    instructions = code(
        check,
        [
            "MOV R1, RZ",
            "LDG.E R4, desc[UR4][R2.64]",  # 0x10, head of the outer loop
            "HMMA.16816.F32 R4, R8, R10, R4",  # 0x20, the inner loop
            "@P0 BRA 0x20",
            "STG.E desc[UR4][R2.64], R4",
            "@P1 BRA 0x10",
            "EXIT",
        ],
    )
    blocks = check.blocks_of(instructions)
    outer, inner = check.loops_of(blocks)
    assert outer.inner == [inner]
    assert check.iteration(blocks, outer)["instructions"] == 5
    assert check.iteration(blocks, outer, lambda counted: 8 if counted["HMMA"] else 1)["instructions"] == 3 + 8 * 2


def test_a_wait_for_an_mbarrier_is_over_at_once(check):
    waits = [
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R16+URZ], R17",  # head of the loop
        "@!P0 BRA 0x60",
        "LDS.128 R4, [R8]",
        "FADD R4, R4, R5",
        "@P1 BRA 0x0",
        "EXIT",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R16+URZ], R17",  # 0x60, again and again
        "@!P0 BRA 0x60",
        "BRA 0x20",
    ]
    blocks = check.blocks_of(code(check, waits))
    (loop,) = [loop for loop in check.loops_of(blocks) if loop.head == 0]
    assert check.iteration(blocks, loop)["instructions"] == 5
    assert len(loop.sure) == len(loop.blocks)


@pytest.mark.parametrize(
    ("moved", "streams", "role"),
    [
        ((64, 64, 0, 0), True, "load"),
        ((64, 64, 64, 0), True, "load"),  # coefficients in shared memory
        ((64, 0, 0, 64), False, "load"),
        ((0, 0, 64, 0), False, "held"),
        ((0, 64, 64, 32), False, "held"),  # leaves something behind, and writes it where that is wanted
        ((0, 64, 64, 0), False, "write"),
        ((0, 64, 0, 0), False, "write"),  # from registers
        ((64, 64, 64, 0), False, None),  # with a residual
        ((64, 0, 64, 64), False, "load"),  # coefficients, and a place for what was loaded
    ],
)
def test_roles_of_loops(check, moved, streams, role):
    assert check.role_of(check.Moved(*moved), check.Moved(*moved), streams) == role


def test_of_a_store_in_two_ways_one_happens(check):
    lines = ["@P0 STG.E.128 desc[UR4][R2.64], R4", "@!P0 STG.E.EF.128 desc[UR4][R2.64], R4"]
    lines += ["STG.E.128 desc[UR4][R2.64], R4", "@!P1 STG.E.128 desc[UR4][R2.64], R4"]
    assert check.moved(check.count(code(check, lines)), 16).stored == 48


def test_wide_outputs_count_by_their_elements(check):
    signature = "void group_norm::{}<__nv_bfloat16, float, 4, group_norm::Rows, 3, true>()"
    lines = ["LDG.E.64 R4, desc[UR4][R2.64]", "FADD R1, R1, R4", "STG.E.128 desc[UR4][R2.64], R4", "@P1 BRA 0x0"]
    kernel = check.Kernel("csrc/cuda/group_norm_act.cu", "f", signature.format("normalize"), 48, threads=256)
    kernel.code = code(check, [*lines, "EXIT"])
    (row,) = check.rows_of(kernel)
    assert (row.kernel, row.dtype, row.layout) == ("normalize<silu, plain>", check.WIDE_OUTPUT, "NCHW")
    assert (row.elements, row.per_element) == (4, 1)
    kernel.signature = signature.format("apply_gradients")
    lines[2:3] = ["LDG.E.128 R8, desc[UR4][R6.64]", "STG.E.64 desc[UR4][R2.64], R4"]
    kernel.code = code(check, [*lines, "EXIT"])
    assert [row.elements for row in check.rows_of(kernel)] == [4]


def test_elements_are_those_of_one_tensor(check):
    assert check.elements_of("load", check.Moved(96, 32, 0, 0), 2) == 32  # with an optional third tensor
    assert check.elements_of("load", check.Moved(64, 0, 0, 64), 2) == 32
    assert check.elements_of("write", check.Moved(0, 32, 96, 0), 2) == 32  # 32 of the 96 are coefficients
    assert check.elements_of("held", check.Moved(0, 32, 96, 32), 2) == 32


def test_reads_what_ptxas_reports(check):
    log = """\
ptxas info    : Compiling entry function 'one' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 59 registers, used 1 barriers, 6928 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90'
    16 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""
    one, two = check.ptxas_report(log, "a.cu").values()
    assert (one.registers, one.shared, one.spilled) == (59, 6928, "")
    assert two.registers == 255
    assert two.spilled.startswith("16 bytes stack frame")


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [
        (32, 0, 256, 8),
        (40, 0, 256, 6),
        (48, 6928, 256, 5),
        (64, 0, 256, 4),
        (128, 0, 512, 1),
        (16, 100 << 10, 128, 2),
    ],
)
def test_blocks_of_a_multiprocessor(check, registers, shared, threads, blocks):
    assert check.blocks_per_sm(registers, shared, threads) == blocks


def test_rows_over_a_limit_are_told_apart(check, monkeypatch):
    (row,) = check.rows_of(normalize(check, SCALE))
    check.judge(row)
    assert (row.limit, row.verdict) == (7, "ok")
    row.per_element = 7.5
    check.judge(row)
    assert row.verdict == "OVER"
    monkeypatch.setitem(check.EXCEEDED, ("batch_norm_act/normalize<relu, plain>", "float32", "NCHW"), 7.5)
    check.judge(row)
    assert row.verdict == "over, known"
    row.per_element = 7.6
    check.judge(row)
    assert row.verdict == "OVER"
    row.per_element, row.blocks = 6, 4
    check.judge(row)
    assert row.verdict == "< 5 blocks"


@pytest.mark.parametrize(
    ("arguments", "name"), [("3, true", "normalize<silu, plain>"), ("1, false", "normalize<relu>")]
)
def test_instances_with_options_have_no_limit(check, arguments, name):
    kernel = normalize(check, SCALE)
    kernel.signature = kernel.signature.replace("1, true", arguments)
    (row,) = check.rows_of(kernel)
    check.judge(row)
    assert (row.kernel, row.limit, row.verdict) == (name, None, "")


def test_what_has_to_have_a_limit_has_one(check):
    kernels = {"reduce_moments": "reduce_moments", "forward": "forward<plain>", "backward": "backward<plain>"}
    families = {"batch_norm_act", "group_norm_act", "reparameterize_kl", "recurrent", "cell_update"}
    for family, name, dtype, layout in check.expected_limits(families):
        options = "any" if dtype == check.WIDE_OUTPUT else "relu, plain"
        usual = kernels.get(name, f"{name}<{options}>")
        kernel = f"{name}_fragments<lstm>" if family == "recurrent" else usual
        role = "load"
        if "_cluster/" in name:
            kernel, role = name.split("/")
        row = check.Row(family, kernel, role, dtype, layout, 40, 0, 256, 6, 0, 100, 100, 1)
        assert row.duty == name
        check.judge(row)
        assert row.verdict in ("ok", "OVER"), row


# Accesses that may be missing, in a loop before the one that has them all.
RAGGED = """
		Function : scale
        /*0000*/                   MOV R1, RZ ;
        /*0010*/               @P1 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/               @P2 LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x1000] ;
        /*0030*/                   BSSY B0, 0x80 ;
        /*0040*/              @!P1 BRA 0x70 ;
        /*0050*/                   FMUL R4, R4, UR12 ;
        /*0060*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0070*/                   BSYNC B0 ;
        /*0080*/               @P2 STG.E.128 desc[UR4][R2.64], R8 ;
        /*0090*/               @P0 BRA 0x10 ;
        /*00a0*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*00b0*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x1000] ;
        /*00c0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00d0*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*00e0*/               @P0 BRA 0xa0 ;
        /*00f0*/                   EXIT ;
"""


def test_the_main_loop_is_the_one_whose_accesses_are_all_there(check):
    (row,) = check.rows_of(normalize(check, RAGGED))
    assert (row.instructions, row.elements) == (5, 8)


def test_a_stream_is_bound_by_what_takes_longest(predictions):
    light = predictions.Loop(per_element=1)
    assert predictions.stream(1e6, light, 4.3e9, 4.3e9) == pytest.approx(2e-3, rel=1e-3)
    heavy = predictions.Loop(per_element=100, warps=32)
    assert predictions.stream(1e9, heavy, 4e9, 0) == pytest.approx(1e11 / (132 * 128 * 1.9e9 * 0.78), rel=1e-3)
    alone = predictions.Loop(per_element=1, warps=8, in_flight=16 << 10)
    assert predictions.stream(1e6, alone, 4.4e9, 0) == pytest.approx(4.4e9 * 0.85e-6 / (132 * 16384), rel=1e-3)


def test_what_is_read_again_may_be_in_the_cache(predictions):
    loop = predictions.Loop(per_element=1)
    assert predictions.stream(1e6, loop, 20e6, 20e6, again=True) == pytest.approx(40e6 / 5.5e12, rel=0.01)
    assert predictions.stream(1e6, loop, 1e9, 1e9, again=True) == pytest.approx((2e9 - 40e6) / 4.3e12, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("direction", "share"), [("forward", 2 / 3), ("backward", 3 / 5)])
def test_large_tensors_approach_the_share_of_the_bytes(predictions, dtype, direction, share):
    found = predictions.predict(
        "batch_norm_act", direction, "split", predictions.Call(1 << 34, dtype, "NCHW", 256)
    )
    assert share - 0.02 < found.share_of_copy < share + 0.01


@pytest.mark.parametrize(("direction", "accesses"), [("forward", 3), ("backward", 4)])
def test_wide_outputs_move_twice_the_bytes(predictions, direction, accesses):
    wide = predictions.Call(64 << 20, predictions.WIDE_OUTPUT, "NCHW", 64)
    calls = wide, replace(wide, dtype="bfloat16")
    found, narrow = (predictions.predict("group_norm_act", direction, "cluster", call) for call in calls)
    moved = found.share_of_copy * found.seconds * predictions.COPY_RATE
    assert moved == pytest.approx(accesses * wide.bytes)
    assert found.seconds > narrow.seconds


def test_small_tensors_cost_their_launches(predictions):
    call = predictions.Call(1 << 12, "float32", "NCHW", 64)
    split, block = (predictions.predict("batch_norm_act", "forward", m, call).seconds for m in ("split", "block"))
    assert block == pytest.approx(1.2e-6 + 3 * 0.85e-6, abs=0.1e-6)
    assert split == pytest.approx(1.2e-6 + 0.5e-6 + 4 * 0.85e-6, abs=0.1e-6)


def test_methods_that_cannot_hold_their_tiles_predict_nothing(predictions):
    call = predictions.Call(1 << 30, "float32", "NCHW", 64)
    assert predictions.predict("batch_norm_act", "forward", "block", call) is None
    assert predictions.predict("batch_norm_act", "forward", "cluster", call) is None


def test_clusters_hold_one_tile_and_a_little(predictions):
    call = predictions.Call(64 << 20, "float32", "NCHW", 64)  # tiles of 1 MB
    forward, backward = (predictions.cluster_plan(call, tensors) for tensors in (1, 2))
    assert forward == predictions.ClusterPlan(8, 16, turns=4, piece_bytes=32 << 10, pieces=4, slots=6)
    assert backward == predictions.ClusterPlan(16, 8, turns=8, piece_bytes=64 << 10, pieces=2, slots=3)
    assert 0.8 < predictions.predict("batch_norm_act", "forward", "cluster", call).share_of_copy < 0.9
    larger = predictions.Call(512 << 20, "float32", "NCHW", 256)  # of 2 MB: in backward 262 KB of a block's 209
    assert predictions.predict("batch_norm_act", "backward", "cluster", larger) is None


@pytest.mark.parametrize(("direction", "tensors"), [("forward", 1), ("backward", 2)])
def test_clusters_hold_groups_of_group_norm(predictions, direction, tensors):
    def share(**facts):
        call = predictions.Call(64 << 20, "float32", **{"layout": "NCHW", "channels": 128} | facts)
        found = predictions.predict("group_norm_act", direction, "cluster", call)
        return found and found.share_of_copy

    assert 0.8 < share() < 0.95  # 256 KB
    assert share(group_bytes=1 << 20) > 0.8
    assert share(group_bytes=(4 << 20) // tensors) is None
    assert share(channels=2048) is None  # more channels in a group than clusters exchange sums of
    assert share(layout="NHWC") > 0.8  # four groups in a row of 64 bytes: 1 MB
    assert share(layout="NHWC", group_bytes=(1 << 20) // tensors) is None


def test_what_no_block_holds_is_not_on_chip(predictions):
    calls = [predictions.Call(64 << 20, "float32", "NCHW", channels) for channels in (128, 256)]
    calls += [predictions.Call(64 << 20, "float32", "NHWC", 128)]  # in rows of 64 bytes
    found = [predictions.predict("group_norm_act", "forward", "on_chip", call) for call in calls]
    assert [each is not None for each in found] == [True, False, False]


def test_counts_change_predictions(predictions):
    call = predictions.Call(1 << 26, "bfloat16", "")
    at_the_limit = predictions.predict("reparameterize_kl", "forward", "stream", call)
    loops = predictions.limit_loops("bfloat16") | {"forward": predictions.Loop(110, 32)}
    before = predictions.predict("reparameterize_kl", "forward", "stream", call, loops)
    assert before.seconds > 1.8 * at_the_limit.seconds


def test_counted_rows_become_loops(check):
    (row,) = check.rows_of(normalize(check, SCALE))
    check.judge(row)
    loops = check.loops_of_rows([row], "batch_norm_act", "float32", "NCHW")
    assert loops["normalize"] == check.predictions.Loop(15 / 8, 48, 6 * 256 * 32)
    assert loops["reduce_moments"].per_element == 5
    assert check.loops_of_rows([row], "batch_norm_act", "float32", "NHWC")["normalize"].per_element == 7


@pytest.mark.parametrize(("direction", "accesses"), [("forward", 3), ("backward", 5)])
def test_a_pair_of_kernels_reads_twice(predictions, direction, accesses):
    call = predictions.Call(1 << 34, "float32", "NCHW")
    assert predictions.pair(direction, call) == pytest.approx(accesses * call.bytes / 4.3e12, rel=0.02)
    cached = predictions.pair(direction, call, 40e6)
    assert predictions.pair(direction, call) - cached == pytest.approx(40e6 / 4.3e12)


def test_targets_are_judged_where_a_tile_fits(predictions):
    lines = {line[:42].strip(): line[42:] for line in predictions.targets()}
    assert "met" in lines["batch_norm_act forward float32 NCHW"]
    assert "no fit" not in lines["batch_norm_act forward float32 NCHW"]
    assert lines["batch_norm_act forward float32 NHWC"].count("no fit") == 3  # 64 bytes of 64 or 256 channels
    slow = dict.fromkeys(
        ("train_cluster/held", "reduce_moments", "normalize", "train_cluster/write"), predictions.Loop(40)
    )
    slow = predictions.limit_loops("float32") | slow
    lines = predictions.targets(lambda *key: slow)
    (line,) = (line for line in lines if line.startswith("batch_norm_act forward float32 NCHW"))
    assert "met" not in line
    assert line.count("MISSED") == 5

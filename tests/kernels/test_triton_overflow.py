"""In the interpreter an int32 that overflows in a kernel is an error, so no test passes by one."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.usefixtures("in_interpreter")


@triton.jit
def offsets_kernel(x_ptr, row, stride, WIDE: tl.constexpr):  # noqa: N803
    if WIDE:
        row = row.to(tl.int64)
    tl.store(x_ptr + row * stride % 4, 1.0)


@pytest.mark.parametrize("wide", [True, False])
def test_a_product_past_int32_is_caught(wide):
    x = torch.zeros(4)
    row = torch.tensor([70000], dtype=torch.int32)
    launch = load_kernel[(1,)]
    if wide:
        launch(x, row, 70001, WIDE=True)
        assert x.sum() == 1
        return
    with pytest.raises(Exception, match="overflow"):
        launch(x, row, 70001, WIDE=False)


@triton.jit
def load_kernel(x_ptr, row_ptr, stride, WIDE: tl.constexpr):  # noqa: N803
    offsets_kernel(x_ptr, tl.load(row_ptr), stride, WIDE)

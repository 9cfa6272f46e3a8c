// What the bindings share: how tensors cross from Python, and the instruction set in use.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace marco_fast {

extern int g_isa;  // index of the instruction set in use; module.cpp

void bind_attention(pybind11::module_& m);
void bind_confidence(pybind11::module_& m);
void bind_decoder(pybind11::module_& m);

// The address of a contiguous tensor's first element; 0: no tensor.
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// A tensor of N dimensions. In Python: (address, *sizes, *strides), strides in elements.
template <int N>
struct Tensor {
  Address address;
  int64_t size[N], stride[N];
};

// An IndexError where a value is outside [low, end).
inline void check_range(const char* name, const int64_t* values, int64_t count, int64_t low,
                        int64_t end) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < low || values[i] >= end)
      throw pybind11::index_error("expected " + std::string(name) + "[" + std::to_string(i) +
                                  "] in " + std::to_string(low) + ".." + std::to_string(end - 1) +
                                  ", got " + std::to_string(values[i]));
}

}  // namespace marco_fast

// Reads the tuple itself: a call has several tensors, and a general conversion of each would take
// longer than a small operation.
template <int N>
struct pybind11::detail::type_caster<marco_fast::Tensor<N>> {
  PYBIND11_TYPE_CASTER(marco_fast::Tensor<N>, const_name("tuple[int, ...]"));

  bool load(handle source, bool) {
    PyObject* tuple = source.ptr();
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 1 + 2 * N) return false;
    value.address = PyLong_AsSize_t(PyTuple_GET_ITEM(tuple, 0));
    for (int i = 0; i < N; ++i) {
      value.size[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(tuple, 1 + i));
      value.stride[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(tuple, 1 + N + i));
    }
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
  }
};

// The Python module marco_fast._C: takes addresses, releases the GIL, chooses the instruction set.
//
// Only bind/ knows Python. marco_fast/ops has checked dtypes, shapes and layouts; what may differ
// from call to call with the same plan or cache is checked here. Tensors cross as addresses, sizes
// and strides: a call with a few rows takes less time than making NumPy views of its tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "base/isa.h"
#include "bind/bind.h"

namespace py = pybind11;

namespace marco_fast {

int g_isa = best_isa();  // set_isa() changes it, for tests and for comparing instruction sets

namespace {

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < kNumIsas; ++i)
    if (isas()[i].supported) names.emplace_back(isas()[i].name);
  return names;
}

void set_isa(const std::string& name) {
  for (int i = 0; i < kNumIsas; ++i)
    if (isas()[i].supported && name == isas()[i].name) {
      g_isa = i;
      return;
    }
  std::string known;
  for (const std::string& each : supported_isas()) known += " " + each;
  throw std::invalid_argument("expected an instruction set of this CPU (" + known.substr(1) +
                              "), got " + name);
}

}  // namespace
}  // namespace marco_fast

PYBIND11_MODULE(_C, m) {
  using namespace marco_fast;
  m.def("supported_isas", &supported_isas, "Instruction sets this CPU can run, slowest first.");
  m.def("isa", [] { return std::string(isas()[g_isa].name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("name"), "Use another instruction set (for tests).");
  bind_attention(m);
  bind_confidence(m);
  bind_decoder(m);
}

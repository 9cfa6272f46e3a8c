"""Make a GGUF file with weights of another type, by llama.cpp itself.

python bench/engines/peers/requantize.py FILE.gguf OUT.gguf Q4_0|Q8_0|Q4_K_M|... THREADS

Run by bench.engines.gguf_models in the environment of llama.cpp.
"""

import ctypes
import sys


def main() -> None:
    import llama_cpp

    source, out, kind, threads = sys.argv[1:]
    # Weights of a kind that mixes types are called "MOSTLY"; those of one type alone, "ALL".
    names = (f"LLAMA_FTYPE_MOSTLY_{kind}", f"LLAMA_FTYPE_ALL_{kind}")
    number = next((getattr(llama_cpp, each) for each in names if hasattr(llama_cpp, each)), None)
    if number is None:
        sys.exit(f"expected a type of weights that llama.cpp knows, got {kind}")
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = number, int(threads)
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters)):
        sys.exit(f"llama.cpp could not make {kind} of {source}")


if __name__ == "__main__":
    # As in protocol.py: a script's folder comes first on the path, where llama_cpp.py is a peer.
    sys.path.append(sys.path.pop(0))
    main()

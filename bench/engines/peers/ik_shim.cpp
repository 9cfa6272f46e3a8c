// What ik_llama_cpp.py needs of ik_llama.cpp, without the layout of its structures.
//
// bench.engines.install compiles it against the llama.h of the commit that it builds.

#include "llama.h"

#include <cstdint>
#include <vector>

namespace {

struct Engine {
    llama_model* model = nullptr;
    llama_context* context = nullptr;
    std::vector<int32_t> ones;
    std::vector<llama_seq_id*> lists;
};

}  // namespace

extern "C" {

// The model with its weights repacked for this CPU while it is loaded; null where it cannot be.
Engine* shim_load(const char* file) {
    llama_backend_init();
    llama_model_params parameters = llama_model_default_params();
    parameters.use_mmap = false;
    parameters.repack_tensors = true;
    parameters.flash_attn = true;
    llama_model* model = llama_model_load_from_file(file, parameters);
    return model == nullptr ? nullptr : new Engine{model};
}

int32_t shim_vocab_size(const Engine* engine) { return llama_n_vocab(engine->model); }

// A context in the place of the one before; 0 where there is none.
int32_t shim_context(Engine* engine, int32_t cells, int32_t batch, int32_t sequences,
                     int32_t threads, int32_t flash) {
    if (engine->context != nullptr) llama_free(engine->context);
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = cells;
    parameters.n_batch = batch;
    parameters.n_seq_max = sequences;
    parameters.n_threads = parameters.n_threads_batch = threads;
    parameters.type_k = parameters.type_v = GGML_TYPE_F16;
    parameters.flash_attn = flash != 0;
    engine->context = llama_init_from_model(engine->model, parameters);
    return engine->context != nullptr;
}

void shim_clear(Engine* engine) { llama_kv_cache_clear(engine->context); }

void shim_copy(Engine* engine, int32_t source, int32_t target, int32_t length) {
    llama_kv_cache_seq_cp(engine->context, source, target, 0, length);
}

// Compute n tokens, each of one sequence; the logits of those that are wanted, null on an error.
float* shim_decode(Engine* engine, int32_t n, int32_t* ids, int32_t* positions, int32_t* sequences,
                   int8_t* wanted) {
    engine->ones.assign(n, 1);
    engine->lists.resize(n);
    for (int32_t i = 0; i < n; ++i) engine->lists[i] = sequences + i;
    llama_batch batch{};
    batch.n_tokens = n;
    batch.token = ids;
    batch.pos = positions;
    batch.n_seq_id = engine->ones.data();
    batch.seq_id = engine->lists.data();
    batch.logits = wanted;
    return llama_decode(engine->context, batch) == 0 ? llama_get_logits(engine->context) : nullptr;
}
}

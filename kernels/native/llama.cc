// The whole forward of a model of Llama's shape, for any batch: prompts, decodes, trees of choices.
//
// x = embed(ids);  for each layer: x += out(attention(rope(qkv(norm(x)))));  x += down(silu(gate) * up);  head(norm(x)).
// Weights are bfloat16 or float32, all else float32. A row's bits depend on its own sequence alone: every product sums in
// one order (linear.h), attention goes through fixed blocks (attention.h), the rest is row by row.
#include "attention.h"

struct Layer {
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the head norms may be null
    Linear qkv, o, gate_up, down;
    int window;
    float *keys, *values;
};

extern "C" {

struct LinearGiven {
    const void* weight;
    const float* bias;
};

struct LayerGiven {
    const float *input_norm, *post_norm, *q_norm, *k_norm;
    LinearGiven qkv, o, gate_up, down;
    float *keys, *values;
    int64_t window;  // 0: everything
};

struct ModelGiven {
    int64_t hidden, heads, kv_heads, head_dim, rotary_dim, inner, vocab, layers, is_bf16;
    float eps, scaling, cap, final_cap;
    const void* embedding;
    const float* final_norm;
    LinearGiven head;
    const LayerGiven* layer;
};

struct BatchGiven {
    int64_t rows, requests, wanted, groups, threads;
    const int64_t *ids, *slots, *table_rows, *prefix_lens, *extend_lens, *wanted_rows;
    const int32_t* table;
    int64_t table_stride;
    const int64_t *group_starts, *group_rows, *shared_lens;
    const int64_t* const* trees;
    const float *cos, *sin;  // [rows, rotary_dim / 2]
    float* logits;           // [wanted, vocab]
};

}  // extern "C"

constexpr int kTogether = 256;  // rows that pass the MLP together, so that what is between stays near
constexpr int kSerial = 1 << 15;  // elements of row-wise work below which threads cost more than they save

struct Model {
    ModelGiven m;
    std::vector<Layer> layers;
    Linear head;
    Plan plan;
    Attention attention;
    Inputs in, attended, inner_in;
    Aligned<float> x, qkv, gate_up, last;

    explicit Model(const ModelGiven& given) : m(given), layers(given.layers) {
        bool bf16 = m.is_bf16;
        int hidden = (int)m.hidden, q = (int)(m.heads * m.head_dim), kv = (int)(m.kv_heads * m.head_dim);
        for (int i = 0; i < m.layers; i++) {
            const LayerGiven& from = m.layer[i];
            Layer& to = layers[i];
            to.input_norm = from.input_norm, to.post_norm = from.post_norm;
            to.q_norm = from.q_norm, to.k_norm = from.k_norm;
            to.qkv.pack(from.qkv.weight, from.qkv.bias, q + 2 * kv, hidden, bf16);
            to.o.pack(from.o.weight, from.o.bias, hidden, q, bf16);
            to.gate_up.pack(from.gate_up.weight, from.gate_up.bias, 2 * (int)m.inner, hidden, bf16);
            to.down.pack(from.down.weight, from.down.bias, hidden, (int)m.inner, bf16);
            to.window = (int)from.window, to.keys = from.keys, to.values = from.values;
        }
        head.pack(m.head.weight, m.head.bias, (int)m.vocab, hidden, bf16);
        attention.h = {(int)m.heads, (int)m.kv_heads, (int)m.head_dim, m.scaling, m.cap};
        m.layer = nullptr;
    }

    void norm(const float* row, const float* weight, int size, float* out) const {
        v16 squares[4] = {zero(), zero(), zero(), zero()};
        int i = 0;
        for (; i + 64 <= size; i += 64)
            for (int c = 0; c < 4; c++) {
                v16 v = load(row + i + c * 16);
                squares[c] += v * v;
            }
        for (; i < size; i += 16) {
            v16 v = size - i >= 16 ? load(row + i) : load_some(row + i, size - i);
            squares[0] += v * v;
        }
        float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)size;
        v16 by = all(1.0f / sqrtf(mean + m.eps));
        for (i = 0; i + 16 <= size; i += 16) store(out + i, load(row + i) * by * load(weight + i));
        if (i < size) store_some(out + i, load_some(row + i, size - i) * by * load_some(weight + i, size - i), size - i);
    }

    void turn(float* head, const float* cos, const float* sin) const {  // pairs (i, i + d / 2)
        const int half = (int)m.rotary_dim / 2;
        for (int i = 0; i < half; i++) {
            float a = head[i], b = head[half + i];
            head[i] = a * cos[i] - b * sin[i];
            head[half + i] = b * cos[i] + a * sin[i];
        }
    }

    // out[i] = silu(gate[i]) * up[i]
    static void gated(const float* gate, const float* up, int size, float* out) {
        for (int i = 0; i < size; i += 16) {
            int left = size - i;
            v16 g = left >= 16 ? load(gate + i) : load_some(gate + i, left);
            v16 u = left >= 16 ? load(up + i) : load_some(up + i, left);
            v16 y = g / (all(1.0f) + exp16(-g)) * u;
            left >= 16 ? store(out + i, y) : store_some(out + i, y, left);
        }
    }

    template <class F>
    void rows(int count, int width, int threads, const F& body) {
        int chunk = std::max(1, kSerial / std::max(1, width)), chunks = (count + chunk - 1) / chunk;
        Threads::each(chunks, threads, [&](int c) {
            for (int r = c * chunk; r < std::min(count, (c + 1) * chunk); r++) body(r);
        });
    }

    void normed(const float* from, const float* weight, int count, int threads) {
        const int hidden = (int)m.hidden;
        in.shape(count, hidden, m.is_bf16);
        rows(count, hidden, threads, [&](int r) {
            static thread_local Aligned<float> row;
            norm(from + (size_t)r * hidden, weight, hidden, row.need(hidden));
            in.set(r, row.data);
        });
    }

    void attend(const Layer& layer, const BatchGiven& b) {
        const int T = (int)b.rows, threads = (int)b.threads, dim = (int)m.head_dim;
        const int q = (int)m.heads * dim, kv = (int)m.kv_heads * dim, width = q + 2 * kv;
        normed(x.data, layer.input_norm, T, threads);
        multiply(layer.qkv, in, 0, T, qkv.need((size_t)T * width), width, Out::store, threads);
        rows(T, width, threads, [&](int r) {
            float* row = qkv.data + (size_t)r * width;
            const size_t at = (size_t)r * (m.rotary_dim / 2);
            for (int h = 0; h < m.heads + m.kv_heads; h++) {
                float* head = row + h * dim;
                const float* weight = h < m.heads ? layer.q_norm : layer.k_norm;
                if (weight) norm(head, weight, dim, head);
                turn(head, b.cos + at, b.sin + at);
            }
            memcpy(layer.keys + (size_t)b.slots[r] * kv, row + q, sizeof(float) * kv);
            memcpy(layer.values + (size_t)b.slots[r] * kv, row + q + kv, sizeof(float) * kv);
        });
        attention.begin(T);
        attention.run(plan, qkv.data, width, layer.keys, layer.values, layer.window, threads);
    }

    void project(const Layer& layer, float* to, int count, const int64_t* which, int threads) {  // to += out(attended)
        const int q = (int)(m.heads * m.head_dim);
        attended.shape(count, q, m.is_bf16);
        rows(count, q, threads, [&](int r) {
            static thread_local Aligned<float> row;
            attention.read(which ? (int)which[r] : r, row.need(q));
            attended.set(r, row.data);
        });
        multiply(layer.o, attended, 0, count, to, m.hidden, Out::add, threads);
    }

    void mlp(const Layer& layer, float* to, int count, int threads) {
        const int inner = (int)m.inner;
        normed(to, layer.post_norm, count, threads);
        for (int first = 0; first < count; first += kTogether) {
            int now = std::min(kTogether, count - first);
            float* both = gate_up.need((size_t)std::min(count, kTogether) * 2 * inner);
            multiply(layer.gate_up, in, first, now, both, 2 * inner, Out::store, threads);
            inner_in.shape(now, inner, m.is_bf16);
            rows(now, inner, threads, [&](int r) {
                static thread_local Aligned<float> row;
                const float* gate = both + (size_t)r * 2 * inner;
                gated(gate, gate + inner, inner, row.need(inner));
                inner_in.set(r, row.data);
            });
            multiply(layer.down, inner_in, 0, now, to + (size_t)first * m.hidden, m.hidden, Out::add, threads);
        }
    }

    void forward(const BatchGiven& b) {
        const int hidden = (int)m.hidden, T = (int)b.rows, threads = (int)b.threads, R = (int)b.wanted;
        Rows batch;
        batch.rows = T, batch.requests = (int)b.requests;
        batch.table_rows = b.table_rows, batch.prefix_lens = b.prefix_lens, batch.extend_lens = b.extend_lens;
        batch.table = b.table, batch.table_stride = (size_t)b.table_stride;
        batch.groups = (int)b.groups, batch.group_starts = b.group_starts, batch.group_rows = b.group_rows;
        batch.shared_lens = b.shared_lens, batch.trees = b.trees;
        plan.make(batch);
        x.need((size_t)T * hidden);
        for (int r = 0; r < T; r++) embed(b.ids[r], x.data + (size_t)r * hidden);
        float* at = x.data;
        int count = T;
        for (size_t i = 0; i < layers.size(); i++) {
            const bool only_wanted = i + 1 == layers.size() && R < T;  // what follows the last attention is row by row
            attend(layers[i], b);
            if (only_wanted) {
                at = last.need((size_t)std::max(R, 1) * hidden), count = R;
                for (int r = 0; r < R; r++)
                    memcpy(at + (size_t)r * hidden, x.data + (size_t)b.wanted_rows[r] * hidden, sizeof(float) * hidden);
            }
            project(layers[i], at, count, only_wanted ? b.wanted_rows : nullptr, threads);
            mlp(layers[i], at, count, threads);
        }
        finish(at, count, b);
    }

    void finish(const float* at, int count, const BatchGiven& b) {
        normed(at, m.final_norm, count, (int)b.threads);
        multiply(head, in, 0, count, b.logits, m.vocab, Out::store, (int)b.threads);
        if (m.final_cap > 0)
            for (size_t i = 0; i < (size_t)count * m.vocab; i++) b.logits[i] = m.final_cap * tanhf(b.logits[i] / m.final_cap);
    }

    void embed(int64_t id, float* to) const {
        const int hidden = (int)m.hidden;
        if (m.is_bf16) {
            const uint16_t* row = (const uint16_t*)m.embedding + (size_t)id * hidden;
            for (int i = 0; i < hidden; i++) to[i] = from_bf16(row[i]);
        } else {
            memcpy(to, (const float*)m.embedding + (size_t)id * hidden, sizeof(float) * hidden);
        }
    }
};

extern "C" {

// What the library was built for, for people.
const char* native_features(void) {
#if defined(__AVX512BF16__)
    return tiles_allowed() ? "AVX-512, bfloat16 on tiles" : "AVX-512, bfloat16 products";
#elif defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX2__)
    return "AVX2";
#else
    return "the compiler's vectors";
#endif
}

// One linear layer by itself, for models of other shapes.
void* linear_new(const LinearGiven* given, int64_t n, int64_t k, int is_bf16) {
    try {
        Linear* made = new Linear;
        made->pack(given->weight, given->bias, (int)n, (int)k, is_bf16);
        return made;
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void linear_free(void* linear) { delete (Linear*)linear; }

// out [rows, n] = x [rows, k] W^T + b, float32
int linear_forward(const void* linear, const float* x, int64_t rows, float* out, int64_t threads) {
    try {
        static thread_local Inputs* in = new Inputs;
        const Linear& w = *(const Linear*)linear;
        in->shape((int)rows, w.k, w.bf16);
        for (int r = 0; r < (int)rows; r++) in->set(r, x + (size_t)r * w.k);
        multiply(w, *in, 0, (int)rows, out, w.n, Out::store, (int)threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

int64_t llama_sizes(void) { return sizeof(ModelGiven) << 32 | sizeof(LayerGiven) << 16 | sizeof(BatchGiven); }

void* llama_new(const ModelGiven* given) {
    try {
        return new Model(*given);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void llama_free(void* model) { delete (Model*)model; }

int llama_forward(void* model, const BatchGiven* batch) {
    for (int64_t r = 0; r < batch->rows; r++)
        if (batch->ids[r] < 0 || batch->ids[r] >= ((Model*)model)->m.vocab) return 2;
    try {
        ((Model*)model)->forward(*batch);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"

// Attention of new rows over the paged pool of keys and values, float32.
//
// A row attends to the keys of its sequence in blocks of kBlock, counted from the sequence's beginning, with a running
// maximum and sum. Which rows go through a block together (a group that shares a prefix, the rows of a prompt) changes what
// is read how often and no bit of a result. The rows of a block's keys are gathered once, keys turned over, for all of them.
#pragma once
#include <algorithm>
#include <cfloat>
#include "linear.h"

constexpr int kBlock = 64, kTileRows = 32;  // keys of a block; rows of a prompt that pass its blocks together

struct Rows {  // T new rows of B requests
    int rows = 0, requests = 0;
    const int64_t *table_rows, *prefix_lens, *extend_lens;
    const int32_t* table;
    size_t table_stride;
    int groups = 0;
    const int64_t *group_starts, *group_rows, *shared_lens;  // groups of requests: starts into group_rows, one more at the end
    const int64_t* const* trees = nullptr;  // for each request the parents of its rows, or null
};

// `rows` see the keys of blocks [begin, end), each up to its own index. Tasks of one level touch different rows.
struct Task {
    int first_row, rows, level, begin, end;
    const int32_t* slots;  // slots[i]: of the key of index i, of these blocks only
};

struct Plan {
    std::vector<Task> tasks;  // by level
    std::vector<int> rows;    // of all tasks
    std::vector<int> index;   // of each row: it sees keys 0..index
    std::vector<int> level_ends;
    std::vector<std::vector<int32_t>> paths;  // slots of rows of trees, from a block's beginning on
    std::vector<int> first_row, begin, level;  // of each request

    void make(const Rows& in) {
        tasks.clear(), rows.clear(), paths.clear(), level_ends.clear();
        index.resize(in.rows);
        first_row.resize(in.requests + 1), begin.assign(in.requests, 0), level.assign(in.requests, 0);
        first_row[0] = 0;
        for (int b = 0; b < in.requests; b++) first_row[b + 1] = first_row[b] + (int)in.extend_lens[b];
        for (int b = 0; b < in.requests; b++)
            for (int i = 0; i < in.extend_lens[b]; i++) index[first_row[b] + i] = (int)in.prefix_lens[b] + i;
        share(in);
        for (int b = 0; b < in.requests; b++) own(in, b);
        if (!in.groups && !in.trees) {
            level_ends.push_back((int)tasks.size());
            return;
        }
        std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.level < b.level; });
        for (size_t i = 0; i < tasks.size(); i++)
            if (i + 1 == tasks.size() || tasks[i + 1].level != tasks[i].level) level_ends.push_back((int)i + 1);
    }

  private:
    const int32_t* slots_of(const Rows& in, int b) const { return in.table + in.table_rows[b] * in.table_stride; }

    void share(const Rows& in) {  // shorter prefixes come first
        for (int g = 0; g < in.groups; g++) {
            const int64_t *first = in.group_rows + in.group_starts[g], *last = in.group_rows + in.group_starts[g + 1];
            int from = begin[*first], to = (int)in.shared_lens[g] / kBlock, deepest = 0;
            bool nested = true;
            for (auto b = first; b < last; b++) {
                nested = nested && begin[*b] == from && in.prefix_lens[*b] >= in.shared_lens[g];
                deepest = std::max(deepest, level[*b]);
            }
            if (!nested || to <= from) continue;
            Task task{(int)rows.size(), 0, deepest, from, to, slots_of(in, (int)*first)};
            for (auto b = first; b < last; b++) {
                for (int r = first_row[*b]; r < first_row[*b + 1]; r++) rows.push_back(r);
                begin[*b] = to, level[*b] = deepest + 1;
            }
            task.rows = (int)rows.size() - task.first_row;
            tasks.push_back(task);
        }
    }

    void own(const Rows& in, int b) {
        int chain = (int)in.extend_lens[b], prefix = (int)in.prefix_lens[b];
        const int64_t* parents = in.trees ? in.trees[b] : nullptr;
        if (parents) {  // rows in a chain, then others that hang on its end, or anywhere
            int count = chain;
            for (chain = 0; chain < count && parents[chain] == chain - 1;) chain++;
            for (int i = chain; i < count; i++) chain = std::min(chain, (int)parents[i] + 1);
            tree(in, b, chain, count);
        }
        for (int i = 0; i < chain; i += kTileRows) {
            int now = std::min(kTileRows, chain - i);
            add(first_row[b] + i, now, level[b], begin[b], (prefix + i + now - 1) / kBlock + 1, slots_of(in, b));
        }
    }

    void tree(const Rows& in, int b, int chain, int count) {
        int stem = (int)in.prefix_lens[b] + chain, whole = stem / kBlock, row = first_row[b];
        const int64_t* parents = in.trees[b];
        if (chain == count) return;
        std::vector<int> depth(count);
        for (int i = chain; i < count; i++) {
            depth[i] = parents[i] < chain ? 0 : depth[parents[i]] + 1;
            index[row + i] = stem + depth[i];
        }
        if (whole > begin[b]) add(row + chain, count - chain, level[b], begin[b], whole, slots_of(in, b));
        int from = std::max(whole, begin[b]);
        const int32_t* slots = slots_of(in, b);
        for (int i = chain; i < count; i++) {
            std::vector<int32_t> path(slots + from * kBlock, slots + stem);
            path.resize(path.size() + depth[i] + 1);
            for (int at = i, place = (int)path.size() - 1; at >= chain; at = (int)parents[at], place--)
                path[place] = slots[in.prefix_lens[b] + at];
            paths.push_back(std::move(path));
            add(row + i, 1, level[b] + 1, from, index[row + i] / kBlock + 1, paths.back().data() - (size_t)from * kBlock);
        }
    }

    void add(int first, int count, int at_level, int from, int to, const int32_t* slots) {
        tasks.push_back({(int)rows.size(), count, at_level, from, to, slots});
        for (int i = 0; i < count; i++) rows.push_back(first + i);
    }
};

struct Heads {
    int heads, kv_heads, dim;
    float scaling, cap;
};

struct Scratch {  // of one thread
    alignas(64) float keys[256 * kBlock], values[kBlock * 256], weights[4][kBlock];
};

// keys[d][j]: dimension d of the block's key j
static void turn_over(const float* pool, size_t slot_stride, const int32_t* slots, int count, int dim, float* keys) {
    for (int j = 0; j < kBlock; j += 16) {
        if (j >= count) {
            for (int d = 0; d < dim; d++) store(keys + d * kBlock + j, zero());
            continue;
        }
        const float* row[16];
        for (int i = 0; i < 16; i++) row[i] = pool + (size_t)slots[std::min(j + i, count - 1)] * slot_stride;
        int d = 0;
#if defined(__AVX512F__)
        for (; d + 16 <= dim; d += 16) {  // quarters of four rows are put together while they are loaded
            for (int c = 0; c < 16; c += 4) {
                __m512 a[4], b[4];
                for (int i = 0; i < 4; i++) {
                    a[i] = _mm512_broadcast_f32x4(_mm_loadu_ps(row[i] + d + c));
                    a[i] = _mm512_mask_broadcast_f32x4(a[i], 0x00f0, _mm_loadu_ps(row[i + 4] + d + c));
                    a[i] = _mm512_mask_broadcast_f32x4(a[i], 0x0f00, _mm_loadu_ps(row[i + 8] + d + c));
                    a[i] = _mm512_mask_broadcast_f32x4(a[i], 0xf000, _mm_loadu_ps(row[i + 12] + d + c));
                }
                b[0] = _mm512_unpacklo_ps(a[0], a[1]), b[1] = _mm512_unpackhi_ps(a[0], a[1]);
                b[2] = _mm512_unpacklo_ps(a[2], a[3]), b[3] = _mm512_unpackhi_ps(a[2], a[3]);
                float* to = keys + (d + c) * kBlock + j;
                _mm512_store_ps(to, (__m512)_mm512_unpacklo_pd((__m512d)b[0], (__m512d)b[2]));
                _mm512_store_ps(to + kBlock, (__m512)_mm512_unpackhi_pd((__m512d)b[0], (__m512d)b[2]));
                _mm512_store_ps(to + 2 * kBlock, (__m512)_mm512_unpacklo_pd((__m512d)b[1], (__m512d)b[3]));
                _mm512_store_ps(to + 3 * kBlock, (__m512)_mm512_unpackhi_pd((__m512d)b[1], (__m512d)b[3]));
            }
        }
#endif
        for (; d < dim; d++)
            for (int i = 0; i < 16; i++) keys[d * kBlock + j + i] = row[i][d];
    }
}

// out[r][0..15 N) = out scaled + weights[r] times the values' dimensions from d on
template <int R, int N>
static void weigh(const float (*weights)[kBlock], const float* const* values, int d, int count, const float* scale,
                  float* const* out) {
    constexpr int S = N >= 4 ? 1 : N == 2 ? 2 : 4;  // sums side by side, so that none waits for the last
    v16 acc[R][N][S];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++)
            for (int s = 0; s < S; s++) acc[r][n][s] = zero();
    for (int j = 0; j < count; j += S)  // count is a multiple of 4
        for (int s = 0; s < S; s++)
            for (int n = 0; n < N; n++) {
                v16 value = load(values[j + s] + d + n * 16);
                for (int r = 0; r < R; r++) acc[r][n][s] += all(weights[r][j + s]) * value;
            }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            v16 total = acc[r][n][0];
            for (int s = 1; s < S; s++) total += acc[r][n][s];
            float* to = out[r] + d + n * 16;
            store(to, load(to) * all(scale[r]) + total);
        }
}

template <int R>
static void scores(const float* const* q, const float* keys, int dim, v16 (*out)[4]) {
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 4; c++) out[r][c] = zero();
    for (int d = 0; d < dim; d++) {
        v16 k[4];
        for (int c = 0; c < 4; c++) k[c] = load(keys + d * kBlock + c * 16);
        for (int r = 0; r < R; r++) {
            v16 x = all(q[r][d]);
            for (int c = 0; c < 4; c++) out[r][c] += x * k[c];
        }
    }
}

static const i16 kLanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Scores to weights, and what the row's earlier sum must be multiplied with. Keys [low, high) of the block are seen.
static float soften(v16* s, int low, int high, const Heads& h, float& best, float& total, float* weights) {
    const v16 barred = all(-INFINITY);
    v16 top = barred;
    for (int c = 0; c < 4; c++) {
        s[c] *= all(h.scaling);
        if (h.cap > 0)
            for (int i = 0; i < 16; i++) s[c][i] = h.cap * tanhf(s[c][i] / h.cap);
        if (low > 0 || high < kBlock) {
            i16 key = kLanes + c * 16;
            s[c] = pick((key >= low) & (key < high), s[c], barred);
        }
        top = max2(top, s[c]);
    }
    float now = std::max(best, largest(top));
    float scale = best == -INFINITY ? 0.0f : exp16(all(best - now))[0];
    v16 part = zero();
    for (int c = 0; c < 4; c++) {
        v16 e = exp16(s[c] - all(now));
        store(weights + c * 16, e);
        part += e;
    }
    best = now;
    total = total * scale + sum(part);
    return scale;
}

// The rows' queries q [T, heads * dim] against one layer; out [T, heads * stride] are sums, divided at the end.
struct Attention {
    Heads h;
    int stride = 0;  // floats of a head in `out`: dim, rounded up
    Aligned<float> out, best, total;

    void begin(int rows) {
        stride = (h.dim + 15) / 16 * 16;
        size_t heads = (size_t)rows * h.heads;
        memset(out.need(heads * stride), 0, heads * stride * sizeof(float));
        best.need(heads), total.need(heads);
        for (size_t i = 0; i < heads; i++) best.data[i] = -INFINITY, total.data[i] = 0;
    }

    void run(const Plan& plan, const float* q, size_t q_stride, const float* keys, const float* values, int window,
             int threads) {
        int from = 0;
        for (int end : plan.level_ends) {
            const int tasks = end - from, parts = threads > 1 && tasks < 4 * threads ? h.kv_heads : 1;
            Threads::each(tasks * parts, threads, [&](int i) {
                static thread_local Scratch* scratch = new Scratch;
                const int part = i % parts, each = h.kv_heads / parts;
                pass(plan, plan.tasks[from + i / parts], part * each, (part + 1) * each, q, q_stride, keys, values, window,
                     *scratch);
            });
            from = end;
        }
    }

    void read(int row, float* to) const {  // [heads * dim]
        for (int head = 0; head < h.heads; head++) {
            size_t at = (size_t)row * h.heads + head;
            float by = 1.0f / total.data[at];
            for (int d = 0; d < h.dim; d++) to[head * h.dim + d] = out.data[at * stride + d] * by;
        }
    }

  private:
    struct Unit {  // one query row of one head
        int row, head, low, high;
    };

    // Heads go through a block one after the other, so that a slot's memory is touched once.
    void pass(const Plan& plan, const Task& task, int first_head, int last_head, const float* q, size_t q_stride,
              const float* keys, const float* values, int window, Scratch& scratch) {
        const size_t slot_stride = (size_t)h.kv_heads * h.dim;
        const int* rows = plan.rows.data() + task.first_row;
        int first_seen = INT32_MAX, last_seen = 0;
        for (int i = 0; i < task.rows; i++) {
            int index = plan.index[rows[i]];
            first_seen = std::min(first_seen, window > 0 ? std::max(0, index - window + 1) : 0);
            last_seen = std::max(last_seen, index);
        }
        for (int block = std::max(task.begin, first_seen / kBlock); block < task.end; block++) {
            const int start = block * kBlock, count = std::min(kBlock, last_seen + 1 - start);
            const int32_t* slots = task.slots + start;
            const int next = block + 1 < task.end ? std::min(kBlock, last_seen + 1 - start - kBlock) : 0;
            for (int kv_head = first_head; kv_head < last_head; kv_head++) {
                for (int j = 0; j < next; j++) {
                    const size_t at = slots[kBlock + j] * slot_stride + kv_head * h.dim;
                    for (int d = 0; d < h.dim; d += 16) {
                        __builtin_prefetch(keys + at + d, 0, 2);
                        __builtin_prefetch(values + at + d, 0, 2);
                    }
                }
                turn_over(keys + kv_head * h.dim, slot_stride, slots, count, h.dim, scratch.keys);
                const float* at[kBlock];
                for (int j = 0; j < kBlock; j++)
                    at[j] = values + slots[std::min(j, count - 1)] * slot_stride + kv_head * h.dim;
                if (h.dim % 16)
                    for (int j = 0; j < kBlock; j++) {
                        float* copy = scratch.values + j * stride;
                        memcpy(copy, at[j], sizeof(float) * h.dim);
                        memset(copy + h.dim, 0, sizeof(float) * (stride - h.dim));
                        at[j] = copy;
                    }
                units(plan, task, kv_head, start, q, q_stride, window, at, scratch);
            }
        }
    }

    // All rows of a task over one block, four query heads at a time.
    void units(const Plan& plan, const Task& task, int kv_head, int start, const float* q, size_t q_stride, int window,
               const float* const* values, Scratch& scratch) {
        const int per_kv = h.heads / h.kv_heads;
        const int* rows = plan.rows.data() + task.first_row;
        Unit some[4];
        int waiting = 0;
        for (int i = 0; i < task.rows; i++) {
            int index = plan.index[rows[i]];
            int low = window > 0 ? std::max(0, index - window + 1 - start) : 0, high = std::min(kBlock, index + 1 - start);
            if (high <= 0 || low >= kBlock) continue;
            for (int g = 0; g < per_kv; g++) {
                some[waiting++] = {rows[i], kv_head * per_kv + g, low, high};
                if (waiting == 4) many<4>(some, q, q_stride, values, scratch), waiting = 0;
            }
        }
        if (waiting == 3) many<3>(some, q, q_stride, values, scratch);
        if (waiting == 2) many<2>(some, q, q_stride, values, scratch);
        if (waiting == 1) many<1>(some, q, q_stride, values, scratch);
    }

    template <int R>
    void many(const Unit* units, const float* q, size_t q_stride, const float* const* values, Scratch& scratch) {
        v16 s[R][4];
        const float* queries[R];
        float* to[R];
        float scale[R];
        int count = 0;
        for (int r = 0; r < R; r++) queries[r] = q + units[r].row * q_stride + units[r].head * h.dim;
        scores<R>(queries, scratch.keys, h.dim, s);
        for (int r = 0; r < R; r++) {
            size_t at = (size_t)units[r].row * h.heads + units[r].head;
            scale[r] = soften(s[r], units[r].low, units[r].high, h, best.data[at], total.data[at], scratch.weights[r]);
            to[r] = out.data + at * stride;
            count = std::max(count, units[r].high);
        }
        count = (count + 3) / 4 * 4;  // what lies behind has the weight 0
        int d = 0;
        if constexpr (R <= 2)
            for (; d + 128 <= stride; d += 128) weigh<R, 8>(scratch.weights, values, d, count, scale, to);
        for (; d + 64 <= stride; d += 64) weigh<R, 4>(scratch.weights, values, d, count, scale, to);
        for (; d + 32 <= stride; d += 32) weigh<R, 2>(scratch.weights, values, d, count, scale, to);
        for (; d < stride; d += 16) weigh<R, 1>(scratch.weights, values, d, count, scale, to);
    }
};

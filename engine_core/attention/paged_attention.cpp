// Paged attention on a CPU: writes the keys and values of a step into their pages, then attends over the pages.
//
// A page is 16 tokens of one kv head, keys as [key_dim][16] and values as [16][padded_value_dim]: scores of 16 keys are
// one vector, and so are 16 numbers of a value. No masks are built and nothing is gathered: each query knows the range
// of keys that it sees.
//
// The unit of work is one kv head of up to ROWS query vectors of one sequence (the heads of the group, for one or more
// tokens), which share every page they read; it is one thread's alone. Pages are taken SPAN keys at a time, counted
// from the start of the sequence, with the softmax rescaled as it goes (Milakov, Gimelshein: Online normalizer
// calculation for softmax, 2018). A query's sums always run over the same keys in the same order in fp32, so its result
// does not depend on the other rows of the batch, on how a prompt is cut into chunks or on the number of threads.
//
// GCC's vector extensions only, and a C interface: for any CPU, with no header but the compiler's own.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

// What the CPU has: numbers in a register, and how many sums the inner loops may keep in registers at a time.
#if defined(__AVX512F__)
constexpr int64_t WIDTH = 16, BUDGET = 16;
#elif defined(__AVX__)
constexpr int64_t WIDTH = 8, BUDGET = 8;
#elif defined(__aarch64__)
constexpr int64_t WIDTH = 4, BUDGET = 16;
#else
constexpr int64_t WIDTH = 4, BUDGET = 8;
#endif

constexpr int64_t LANES = 16;             // tokens of a page
constexpr int64_t PARTS = LANES / WIDTH;  // vectors of a page's row
constexpr int64_t GROUP = 4;              // pages at a time
constexpr int64_t SPAN = GROUP * LANES;
constexpr int64_t TILE = std::min<int64_t>(4, BUDGET / PARTS);  // query vectors at a time
constexpr int64_t ROWS = 32;      // query vectors of a unit of work; more if one token has more heads per kv head
constexpr float LOWEST = -3e38f;  // finite: -inf minus -inf is no number

typedef float Vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t WordVec __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));

struct bf16 {
    uint16_t bits;
};

INLINE Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
INLINE Vec load(const bf16* from) {
    return (Vec)(__builtin_convertvector(*reinterpret_cast<const HalfVec*>(from), WordVec) << 16);
}
INLINE void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
INLINE Vec all(float value) { return value - Vec{}; }
INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

INLINE float number(float value) { return value; }
INLINE float number(bf16 value) {
    uint32_t word = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &word, 4);
    return result;
}
INLINE void round_to(float* to, float value) { *to = value; }
INLINE void round_to(bf16* to, float value) {  // to nearest, ties to even
    uint32_t word;
    std::memcpy(&word, &value, 4);
    to->bits = uint16_t(value != value ? 0x7fc0 : (word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

INLINE IntVec lanes() {
    IntVec order;
    for (int32_t i = 0; i < WIDTH; ++i) order[i] = i;
    return order;
}
INLINE float highest(Vec v) {
    for (int32_t step = WIDTH / 2; step; step /= 2) v = max(v, __builtin_shuffle(v, lanes() ^ step));
    return v[0];
}
INLINE float total(Vec v) {
    for (int32_t step = WIDTH / 2; step; step /= 2) v += __builtin_shuffle(v, lanes() ^ step);
    return v[0];
}

// e^x for x <= 0 with a relative error of 1e-7 (Cephes' expf); 0 below -87.3, NaN stays NaN.
INLINE Vec exponential(Vec x) {
    Vec low = x < -87.3f ? all(-87.3f) : x;
    Vec n = (low * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded by pushing the fraction out of the mantissa
    Vec r = low - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
             1.6666665459e-1f) * r + 5.0000001201e-1f;
    Vec power = (Vec)((__builtin_convertvector(n, IntVec) + 127) << 23);
    Vec result = (p * r * r + r + 1.0f) * power;
    return x < -87.3f ? all(0.0f) : result;
}

// Cephes' tanhf: a polynomial near 0, where the other form cancels.
INLINE Vec hyperbolic_tangent(Vec x) {
    Vec size = x < 0.0f ? -x : x;
    Vec e = exponential(-2.0f * size);
    Vec far = (1.0f - e) / (1.0f + e);
    Vec z = x * x;
    Vec near = ((((-5.70498872745e-3f * z + 2.06390887954e-2f) * z - 5.37397155531e-2f) * z + 1.33314422036e-1f) * z -
                3.33332819422e-1f) * z * x + x;
    return size < 0.625f ? near : (x < 0.0f ? -far : far);
}

}  // namespace

// The three arguments, mirrored field by field in cpu.py: one made per step, one per layer, one per layer.
extern "C" {
struct Plan {
    const int64_t* slots;                                 // [tokens]
    const int32_t *query_starts, *kv_lens, *block_table;  // [rows + 1], [rows], [rows, table_width]
    int64_t tokens, rows, table_width, pages_per_block;
};
struct Layer {
    void *keys, *values;  // the pages
    int64_t query_heads, kv_heads, key_dim, value_dim, padded_value_dim;
    int64_t window, chunk;  // 0 is off
    float scale, softcap;   // softcap 0 is off
};
struct Tensors {
    const void *query, *key, *value;  // [tokens, heads, dim], with strides in elements
    int64_t query_strides[2], key_strides[2], value_strides[2];
    const float* sinks;  // [query_heads], or null
    void* output;        // [tokens, query_heads, value_dim]
    int64_t threads;
};
}

namespace {

template <typename T>
const T* vector_of(const void* tensor, const int64_t strides[2], int64_t token, int64_t head) {
    return (const T*)tensor + token * strides[0] + head * strides[1];
}

template <typename T>
void write_token(const Plan& plan, const Layer& layer, const Tensors& tensors, int64_t token) {
    int64_t page = plan.slots[token] / LANES, lane = plan.slots[token] % LANES;
    for (int64_t head = 0; head < layer.kv_heads; ++head) {
        const T* key = vector_of<T>(tensors.key, tensors.key_strides, token, head);
        const T* value = vector_of<T>(tensors.value, tensors.value_strides, token, head);
        T* keys = (T*)layer.keys + (page * layer.kv_heads + head) * layer.key_dim * LANES + lane;
        T* values = (T*)layer.values + ((page * layer.kv_heads + head) * LANES + lane) * layer.padded_value_dim;
        for (int64_t d = 0; d < layer.key_dim; ++d) keys[d * LANES] = key[d];
        std::memcpy(values, value, layer.value_dim * sizeof(T));
    }
}

struct Range {  // of key positions
    int64_t begin, end;
};

// The query vectors of one unit of work: tokens `first` to `first + tokens` of a row, `heads` each.
template <typename T>
struct Unit {
    const Plan& plan;
    const Layer& layer;
    const Tensors& tensors;
    int64_t row, first, tokens, kv_head, heads;
    float *query, *sums, *weights, *peaks;  // [n, key_dim], [n, padded_value_dim], [n, SPAN], [n]
    Vec* masses;                            // [n]
    const T *keys[GROUP], *values[GROUP], *next_keys[GROUP], *next_values[GROUP];

    int64_t count() const { return tokens * heads; }

    Range visible(int64_t vector) const {
        int64_t queries = plan.query_starts[row + 1] - plan.query_starts[row];
        int64_t position = plan.kv_lens[row] - queries + first + vector / heads;
        int64_t begin = layer.window ? std::max<int64_t>(0, position - layer.window + 1) : 0;
        if (layer.chunk) begin = std::max(begin, position / layer.chunk * layer.chunk);
        return {begin, position + 1};
    }

    void run() {
        start();
        Range all_keys = {visible(0).begin, visible(count() - 1).end};
        find_pages(all_keys.begin / SPAN * SPAN, all_keys);
        for (int64_t at = all_keys.begin / SPAN * SPAN; at < all_keys.end; at += SPAN) {
            std::copy_n(next_keys, GROUP, keys), std::copy_n(next_values, GROUP, values);
            find_pages(at + SPAN, all_keys);
            for (int64_t vector = 0; vector < count(); vector += TILE) score(vector, std::min(TILE, count() - vector));
            for (int64_t vector = 0; vector < count(); ++vector) weigh(vector, at);
            // Where some see less than others, vectors of different tokens go apart: a key that a token does not see
            // must not reach it even as 0 times infinity.
            bool whole = visible(count() - 1).begin <= at && visible(0).end >= at + SPAN;
            int64_t together = whole ? count() : heads;
            for (int64_t begin = 0; begin < count(); begin += together) {
                Range seen = visible(begin);
                seen = {std::max<int64_t>(seen.begin - at, 0), std::min(seen.end - at, SPAN)};
                for (int64_t vector = begin; vector < begin + together; vector += TILE)
                    add_values(vector, std::min(TILE, begin + together - vector), seen);
            }
        }
        finish();
    }

    void start() {
        for (int64_t vector = 0; vector < count(); ++vector) {
            int64_t token = plan.query_starts[row] + first + vector / heads, head = kv_head * heads + vector % heads;
            const T* from = vector_of<T>(tensors.query, tensors.query_strides, token, head);
            float* to = query + vector * layer.key_dim;
            for (int64_t d = 0; d < layer.key_dim; ++d) to[d] = number(from[d]) * layer.scale;
            peaks[vector] = tensors.sinks ? tensors.sinks[head] : LOWEST;
            masses[vector] = Vec{};
            masses[vector][0] = tensors.sinks ? 1.0f : 0.0f;
        }
        std::fill_n(sums, count() * layer.padded_value_dim, 0.0f);
    }

    // Pages of SPAN keys from `at`; those that nobody sees, which may not exist, are replaced by a neighbour.
    void find_pages(int64_t at, Range all_keys) {
        for (int64_t i = 0; i < GROUP; ++i) {
            int64_t low = all_keys.begin / LANES, high = (all_keys.end - 1) / LANES;
            int64_t place = std::clamp(at / LANES + i, low, high);
            int64_t block = plan.block_table[row * plan.table_width + place / plan.pages_per_block];
            int64_t page = (block * plan.pages_per_block + place % plan.pages_per_block) * layer.kv_heads + kv_head;
            next_keys[i] = (const T*)layer.keys + page * layer.key_dim * LANES;
            next_values[i] = (const T*)layer.values + page * LANES * layer.padded_value_dim;
        }
    }

    void score(int64_t vector, int64_t count) {
        switch (count) {
            case 1: return score_some<1>(vector);
            case 2: return score_some<2>(vector);
            case 3: return score_some<3>(vector);
            default: return score_some<4>(vector);
        }
    }

    // Each score is summed up over the dims in order, whatever N is. Meanwhile the next pages are fetched: they may be
    // anywhere, so that the CPU can't foresee them.
    template <int64_t N>
    void score_some(int64_t vector) {
        constexpr int64_t PAGES = std::clamp<int64_t>(BUDGET / (N * PARTS), 1, GROUP);
        static_assert(GROUP % PAGES == 0);
        const float* from = query + vector * layer.key_dim;
        for (int64_t first = 0; first < GROUP; first += PAGES) {
            Vec scores[N][PAGES * PARTS] = {};
            for (int64_t d = 0; d < layer.key_dim; ++d) {
                Vec key[PAGES * PARTS];
                for (int64_t i = 0; i < PAGES * PARTS; ++i)
                    key[i] = load(keys[first + i / PARTS] + d * LANES + i % PARTS * WIDTH);
                if (vector == 0)
                    for (int64_t i = 0; i < PAGES; ++i) __builtin_prefetch(next_keys[first + i] + d * LANES);
                for (int64_t n = 0; n < N; ++n)
                    for (int64_t i = 0; i < PAGES * PARTS; ++i) scores[n][i] += from[n * layer.key_dim + d] * key[i];
            }
            for (int64_t n = 0; n < N; ++n)
                for (int64_t i = 0; i < PAGES * PARTS; ++i)
                    store(weights + (vector + n) * SPAN + first * LANES + i * WIDTH, scores[n][i]);
        }
    }

    // Scores become weights: e to the score minus the highest so far. What was summed up before is scaled down to that.
    void weigh(int64_t vector, int64_t at) {
        Range seen = visible(vector);
        if (seen.end <= at || seen.begin >= at + SPAN) return;
        bool whole = seen.begin <= at && seen.end >= at + SPAN;
        float* scores = weights + vector * SPAN;
        Vec highest_of = all(LOWEST);
        for (int64_t i = 0; i < SPAN; i += WIDTH) {
            Vec score = load(scores + i);
            if (layer.softcap != 0.0f) score = layer.softcap * hyperbolic_tangent(score / layer.softcap);
            if (!whole) score = hidden(seen, at + i) ? all(LOWEST) : score;
            store(scores + i, score);
            highest_of = max(score, highest_of);
        }
        float peak = std::max(peaks[vector], highest(highest_of));
        Vec shrink = exponential(all(peaks[vector] - peak));
        Vec mass = masses[vector] * shrink;
        for (int64_t i = 0; i < SPAN; i += WIDTH) {
            Vec weight = exponential(load(scores + i) - peak);
            if (!whole) weight = hidden(seen, at + i) ? all(0.0f) : weight;
            store(scores + i, weight);
            mass += weight;
        }
        masses[vector] = mass;
        if (peak != peaks[vector])
            for (int64_t d = 0; d < layer.padded_value_dim; d += WIDTH) {
                float* sum = sums + vector * layer.padded_value_dim + d;
                store(sum, load(sum) * shrink);
            }
        peaks[vector] = peak;
    }

    static IntVec hidden(Range seen, int64_t position) {
        IntVec positions = lanes() + int32_t(position);
        return (positions < int32_t(seen.begin)) | (positions >= int32_t(seen.end));
    }

    void add_values(int64_t vector, int64_t count, Range seen) {
        switch (count) {
            case 1: return add_some<1>(vector, seen);
            case 2: return add_some<2>(vector, seen);
            case 3: return add_some<3>(vector, seen);
            default: return add_some<4>(vector, seen);
        }
    }

    template <int64_t N>
    void add_some(int64_t vector, Range seen) {
        constexpr int64_t COLUMNS = std::min<int64_t>(BUDGET / N, 64 / WIDTH);
        int64_t d = 0;
        for (; d + COLUMNS * WIDTH <= layer.padded_value_dim; d += COLUMNS * WIDTH)
            add_columns<N, COLUMNS>(vector, seen, d);
        for (; d < layer.padded_value_dim; d += WIDTH) add_columns<N, 1>(vector, seen, d);
    }

    template <int64_t N, int64_t COLUMNS>
    void add_columns(int64_t vector, Range seen, int64_t d) {
        Vec sum[N][COLUMNS];
        float* to = sums + vector * layer.padded_value_dim + d;
        for (int64_t n = 0; n < N; ++n)
            for (int64_t c = 0; c < COLUMNS; ++c) sum[n][c] = load(to + n * layer.padded_value_dim + c * WIDTH);
        for (int64_t i = seen.begin; i < seen.end; ++i) {
            int64_t place = i % LANES * layer.padded_value_dim + d;
            Vec value[COLUMNS];
            for (int64_t c = 0; c < COLUMNS; ++c) value[c] = load(values[i / LANES] + place + c * WIDTH);
            if (vector == 0)
                for (int64_t c = 0; c < COLUMNS; c += PARTS)
                    __builtin_prefetch(next_values[i / LANES] + place + c * WIDTH);
            for (int64_t n = 0; n < N; ++n)
                for (int64_t c = 0; c < COLUMNS; ++c) sum[n][c] += weights[(vector + n) * SPAN + i] * value[c];
        }
        for (int64_t n = 0; n < N; ++n)
            for (int64_t c = 0; c < COLUMNS; ++c) store(to + n * layer.padded_value_dim + c * WIDTH, sum[n][c]);
    }

    void finish() {
        for (int64_t vector = 0; vector < count(); ++vector) {
            int64_t token = plan.query_starts[row] + first + vector / heads, head = kv_head * heads + vector % heads;
            T* to = (T*)tensors.output + (token * layer.query_heads + head) * layer.value_dim;
            float mass = total(masses[vector]);
            for (int64_t d = 0; d < layer.value_dim; ++d)
                round_to(to + d, sums[vector * layer.padded_value_dim + d] / mass);
        }
    }
};

template <typename T>
void attend(const Plan& plan, const Layer& layer, const Tensors& tensors) {
    int64_t heads = layer.query_heads / layer.kv_heads;
    int64_t tokens = std::max<int64_t>(1, ROWS / heads);  // of a unit of work
    std::vector<int64_t> rows, firsts;
    for (int64_t row = 0; row < plan.rows; ++row)
        for (int64_t first = 0; first < plan.query_starts[row + 1] - plan.query_starts[row]; first += tokens)
            rows.push_back(row), firsts.push_back(first);
    int64_t size = tokens * heads, per_vector = layer.key_dim + layer.padded_value_dim + SPAN + 1 + WIDTH;
#pragma omp parallel num_threads(int(tensors.threads))
    {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < plan.tokens; ++token) write_token<T>(plan, layer, tensors, token);
        std::vector<float> room(size * per_vector);
        float *query = room.data(), *sums = query + size * layer.key_dim;
        float *weights = sums + size * layer.padded_value_dim, *peaks = weights + size * SPAN, *masses = peaks + size;
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < int64_t(rows.size()) * layer.kv_heads; ++unit) {
            int64_t row = rows[unit / layer.kv_heads], first = firsts[unit / layer.kv_heads];
            int64_t left = plan.query_starts[row + 1] - plan.query_starts[row] - first;
            Unit<T>{plan, layer, tensors, row, first, std::min(tokens, left), unit % layer.kv_heads, heads,
                    query, sums, weights, peaks, (Vec*)masses, {}, {}, {}, {}}.run();
        }
    }
}

}  // namespace

extern "C" void attend_float32(const Plan* plan, const Layer* layer, const Tensors* tensors) {
    attend<float>(*plan, *layer, *tensors);
}
extern "C" void attend_bfloat16(const Plan* plan, const Layer* layer, const Tensors* tensors) {
    attend<bf16>(*plan, *layer, *tensors);
}

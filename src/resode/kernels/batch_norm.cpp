// Batch normalisation of channels-last activations with the addition and ReLU behind it, forward and backward.
//
//     y = relu(w (x - m) r + b + s),   m = mean(x),  v = mean((x - m)^2),  r = (v + eps)^(-1/2)
//
// over the rows of an (R, C) matrix: rows are the pixels of all images, columns their channels. s and the ReLU are
// optional. Each direction takes two passes over the data: sums, then values. Sums are taken of x minus its first
// row, in single precision within a tile of rows and in double precision over tiles. Each thread has a contiguous
// range of rows, so that the same number of threads gives the same bits.
#include <omp.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

using namespace resode;  // the number of channels is a multiple of LANES

constexpr int WAYS = 4;    // independent partial sums, to hide the latency of additions
constexpr int TILE = 64;   // rows summed in single precision

inline Vector positive(Vector v) { return v < 0 ? Vector{} : v; }  // NaN stays NaN

// Call each(thread, begin, end) in every thread with its range of rows; there may be fewer threads than requested.
template <class Each>
void in_threads(int64_t rows, int threads, Each each) {
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
        each(thread, rows * thread / team, rows * (thread + 1) / team);
    }
}

// The sums over all rows of a(k, c) and a(k, c) b(k, c), where k counts elements and c channels.
template <class Two>
void sums(int64_t rows, int64_t channels, int threads, double* first, double* second, Two accumulate) {
    std::vector<double> partial(2 * channels * threads);
    in_threads(rows, threads, [&](int64_t thread, int64_t begin, int64_t end) {
        double* own = partial.data() + 2 * channels * thread;
        for (int64_t row = begin; row < end; row += TILE) {
            int64_t last = row + TILE < end ? row + TILE : end;
            for (int64_t c = 0; c < channels; c += LANES) {
                Vector a[WAYS] = {}, q[WAYS] = {};
                int64_t i = row;
                for (; i + WAYS <= last; i += WAYS)
                    for (int way = 0; way < WAYS; ++way) accumulate((i + way) * channels + c, c, a[way], q[way]);
                for (; i < last; ++i) accumulate(i * channels + c, c, a[0], q[0]);
                Vector one = (a[0] + a[1]) + (a[2] + a[3]), other = (q[0] + q[1]) + (q[2] + q[3]);
                for (int j = 0; j < LANES; ++j) {
                    own[c + j] += one[j];
                    own[channels + c + j] += other[j];
                }
            }
        }
    });
    for (int thread = 0; thread < threads; ++thread)
        for (int64_t c = 0; c < channels; ++c) {
            first[c] += partial[2 * channels * thread + c];
            second[c] += partial[2 * channels * thread + channels + c];
        }
}

// Call each(k, c) for every vector, where k counts elements and c channels.
template <class Each>
void for_vectors(int64_t rows, int64_t channels, int threads, Each each) {
    in_threads(rows, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            for (int64_t c = 0; c < channels; c += LANES) each(i * channels + c, c);
    });
}

template <class T, bool add, bool relu>
void values(int64_t rows, int64_t channels, const T* x, const T* s, const float* mean, const float* scale,
            const float* b, T* y, int threads) {
    for_vectors(rows, channels, threads, [=](int64_t k, int64_t c) {
        Vector z = (load(x + k) - load(mean + c)) * load(scale + c) + load(b + c);
        if (add) z += load(s + k);
        store(y + k, relu ? positive(z) : z);
    });
}

template <class T>
void forward(int64_t rows, int64_t channels, const T* x, const T* s, const float* w, const float* b,
             double eps, bool relu, T* y, float* mean, float* variance, float* r, int threads) {
    std::vector<float> origin(channels), scale(channels);
    std::vector<double> first(channels), second(channels);
    for (int64_t c = 0; c < channels; c += LANES) store(origin.data() + c, load(x + c));
    const float* o = origin.data();
    sums(rows, channels, threads, first.data(), second.data(), [=](int64_t k, int64_t c, Vector& a, Vector& q) {
        Vector d = load(x + k) - load(o + c);
        a += d;
        q += d * d;
    });
    for (int64_t c = 0; c < channels; ++c) {
        double offset = first[c] / rows, v = second[c] / rows - offset * offset;
        mean[c] = float(o[c] + offset);
        v = v < 0 ? 0 : v;
        variance[c] = float(v * rows / (rows - 1));
        r[c] = float(1 / std::sqrt(v + eps));
        scale[c] = w[c] * r[c];
    }
    auto kernel = s ? (relu ? values<T, true, true> : values<T, true, false>)
                : (relu ? values<T, false, true> : values<T, false, false>);
    kernel(rows, channels, x, s, mean, scale.data(), b, y, threads);
}

// dx = w r (h - mean(h) - r^2 (x - m) mean(h (x - m))) with h = g where y > 0, g without a ReLU; ds = h.
// Without s, y is not read: its sign is that of w r (x - m) + b. With s but without a ReLU ds is g, and neither y nor ds
// is passed.
template <class T, bool add, bool relu>
void backward(int64_t rows, int64_t channels, const T* x, const T* y, const T* g, const float* w, const float* b,
              const float* mean, const float* r, T* dx, T* ds, float* dw, float* db, int threads) {
    std::vector<float> slope(channels), shift(channels), scale(channels);
    std::vector<double> first(channels), second(channels);
    for (int64_t c = 0; c < channels; ++c) scale[c] = w[c] * r[c];
    const float *p = scale.data(), *t = slope.data(), *q = shift.data();
    auto masked = [=](int64_t k, int64_t c, Vector centred) {
        Vector h = load(g + k);
        if (!relu) return h;
        return (add ? load(y + k) : centred * load(p + c) + load(b + c)) > 0 ? h : Vector{};
    };
    sums(rows, channels, threads, first.data(), second.data(), [=](int64_t k, int64_t c, Vector& a, Vector& e) {
        Vector centred = load(x + k) - load(mean + c), h = masked(k, c, centred);
        a += h;
        e += h * centred;
    });
    for (int64_t c = 0; c < channels; ++c) {
        db[c] = float(first[c]);
        dw[c] = float(second[c] * r[c]);
        slope[c] = float(-double(scale[c]) * r[c] * r[c] * second[c] / rows);
        shift[c] = float(-double(scale[c]) * first[c] / rows);
    }
    for_vectors(rows, channels, threads, [=](int64_t k, int64_t c) {
        Vector centred = load(x + k) - load(mean + c), h = masked(k, c, centred);
        if (add) store(ds + k, h);
        store(dx + k, load(p + c) * h + (load(t + c) * centred + load(q + c)));
    });
}

template <class T>
void backward(int64_t rows, int64_t channels, const void* x, const void* y, const void* g, const float* w,
              const float* b, const float* mean, const float* r, bool relu, void* dx, void* ds, float* dw,
              float* db, int threads) {
    auto kernel = ds ? backward<T, true, true> : relu ? backward<T, false, true> : backward<T, false, false>;
    kernel(rows, channels, (const T*)x, (const T*)y, (const T*)g, w, b, mean, r, (T*)dx, (T*)ds, dw, db, threads);
}

}  // namespace

extern "C" void batch_norm_forward(int bf16, int64_t rows, int64_t channels, const void* x, const void* s,
                                   const float* w, const float* b, double eps, int relu, void* y, float* mean,
                                   float* variance, float* r, int threads) {
    if (bf16)
        forward(rows, channels, (const BFloat16*)x, (const BFloat16*)s, w, b, eps, relu, (BFloat16*)y, mean,
                variance, r, threads);
    else
        forward(rows, channels, (const float*)x, (const float*)s, w, b, eps, relu, (float*)y, mean, variance,
                r, threads);
}

extern "C" void batch_norm_backward(int bf16, int64_t rows, int64_t channels, const void* x, const void* y,
                                    const void* g, const float* w, const float* b, const float* mean,
                                    const float* r, int relu, void* dx, void* ds, float* dw, float* db,
                                    int threads) {
    (bf16 ? backward<BFloat16> : backward<float>)(rows, channels, x, y, g, w, b, mean, r, relu, dx, ds, dw, db,
                                              threads);
}

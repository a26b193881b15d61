// The generators of a tied twist applied to channels-last images, and their adjoint:
//
//     v[i][j][n] = sum over k of w[i][j][n][k] e[i][j][k],        e[k] = sum over entries of stencil k of s u
//
// A stencil is a sum of a few neighbours of a pixel, with signs; generators weight stencils by functions of the
// position. Images are divided among threads; sums are single precision.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "vectors.h"

extern "C" {

struct Generators {
    int64_t images, height, width, channels;  // of u
    int64_t rows, columns;                    // of v
    int64_t down, across, above, left;        // stride and padding
    int64_t bottom, right;                    // the largest offsets of an entry
    int64_t stencils, generators;
    const int32_t* entries;  // (., 3): row, column, sign
    const int32_t* begins;   // (stencils + 1): index of the first entry of each
    const float* weights;    // (rows, columns, generators, stencils)
};
}

namespace {

using namespace resode;

template <class T>
inline Vector load_channels(const T* from, int64_t channels) {
    if (channels >= LANES) return load(from);
    T found[LANES] = {};
    std::copy_n(from, channels, found);
    return load(found);
}

template <class T>
inline void store_channels(T* to, Vector x, int64_t channels) {
    if (channels >= LANES) return store(to, x);
    T found[LANES];
    store(found, x);
    std::copy_n(found, channels, to);
}

struct Entry {
    int64_t offset;
    float sign;
};

struct PaddedImage {  // an image in single precision with zeros around it, its channels in vectors
    int64_t blocks, height, pitch;
    std::vector<Entry> entries;

    explicit PaddedImage(const Generators& of)
        : blocks((of.channels + LANES - 1) / LANES),
          height(std::max(of.above + of.height, (of.rows - 1) * of.down + of.bottom + 1)),
          pitch(std::max(of.left + of.width, (of.columns - 1) * of.across + of.right + 1)) {
        for (int32_t k = 0; k < of.begins[of.stencils]; ++k) {
            const int32_t* e = of.entries + 3 * k;
            entries.push_back({(e[0] * pitch + e[1]) * blocks, float(e[2])});
        }
    }
    bool has_pairs_only(const Generators& of) const {
        for (int64_t k = 0; k < of.stencils; ++k)
            if (of.begins[k + 1] - of.begins[k] != 2) return false;
        return true;
    }
    int64_t size() const { return height * pitch * blocks; }
    int64_t inside(const Generators& of, int64_t h) const { return ((of.above + h) * pitch + of.left) * blocks; }
};

template <class T>
void read(const Generators& of, const PaddedImage& padded, const T* u, Vector* to) {
    for (int64_t h = 0; h < of.height; ++h) {
        Vector* row = to + padded.inside(of, h);
        for (int64_t w = 0; w < of.width; ++w, u += of.channels)
            for (int64_t b = 0; b < padded.blocks; ++b) *row++ = load_channels(u + b * LANES, of.channels - b * LANES);
    }
}

template <class T>
void write(const Generators& of, const PaddedImage& padded, const Vector* from, T* u) {
    for (int64_t h = 0; h < of.height; ++h) {
        const Vector* row = from + padded.inside(of, h);
        for (int64_t w = 0; w < of.width; ++w, u += of.channels)
            for (int64_t b = 0; b < padded.blocks; ++b) store_channels(u + b * LANES, *row++, of.channels - b * LANES);
    }
}

// Call each(pixel of v, first channel, the same vector of u) for each pixel of v and each vector of channels.
template <class Each>
inline void for_pixels(const Generators& of, const PaddedImage& padded, Vector* u, Each each) {
    for (int64_t i = 0; i < of.rows; ++i)
        for (int64_t j = 0; j < of.columns; ++j) {
            Vector* at = u + (i * of.down * padded.pitch + j * of.across) * padded.blocks;
            for (int64_t b = 0; b < padded.blocks; ++b) each(i * of.columns + j, b * LANES, at + b);
        }
}

template <class T>
void apply(const Generators& of, const PaddedImage& padded, Vector* u, Vector* e, T* v) {
    const int64_t stencils = of.stencils, generators = of.generators, channels = of.channels;
    for_pixels(of, padded, u, [&](int64_t pixel, int64_t c, const Vector* at) {
        for (int64_t k = 0; k < stencils; ++k) {
            e[k] = Vector{};
            for (int32_t n = of.begins[k]; n < of.begins[k + 1]; ++n)
                e[k] += padded.entries[n].sign * at[padded.entries[n].offset];
        }
        for (int64_t g = 0; g < generators; ++g) {
            const float* weights = of.weights + (pixel * generators + g) * stencils;
            Vector sum = {};
            for (int64_t k = 0; k < stencils; ++k) sum += weights[k] * e[k];
            store_channels(v + (pixel * generators + g) * channels + c, sum, channels - c);
        }
    });
}

template <class T>
void apply_adjoint(const Generators& of, const PaddedImage& padded, const T* v, Vector* e, Vector* u) {
    const int64_t stencils = of.stencils, generators = of.generators, channels = of.channels;
    for_pixels(of, padded, u, [&](int64_t pixel, int64_t c, Vector* at) {
        std::fill_n(e, stencils, Vector{});
        for (int64_t g = 0; g < generators; ++g) {
            const float* weights = of.weights + (pixel * generators + g) * stencils;
            Vector given = load_channels(v + (pixel * generators + g) * channels + c, channels - c);
            for (int64_t k = 0; k < stencils; ++k) e[k] += weights[k] * given;
        }
        for (int64_t k = 0; k < stencils; ++k)
            for (int32_t n = of.begins[k]; n < of.begins[k + 1]; ++n)
                at[padded.entries[n].offset] += padded.entries[n].sign * e[k];
    });
}

// The same for four generators and four stencils of two entries, on whole vectors of channels: the case of a conformal
// or saddle tie of 3x3 kernels. Everything stays in registers.
struct Four {
    int64_t first[4], second[4];
    Vector one[4], two[4];
    explicit Four(const PaddedImage& padded) {
        for (int k = 0; k < 4; ++k) {
            const Entry &a = padded.entries[2 * k], &b = padded.entries[2 * k + 1];
            first[k] = a.offset, second[k] = b.offset;
            one[k] = Vector{} + a.sign, two[k] = Vector{} + b.sign;
        }
    }
};

template <class T>
void apply_four(const Generators& of, const PaddedImage& padded, Vector* u, T* v) {
    const Four four(padded);
    const int64_t channels = of.channels;
    const float* weights = of.weights;
    for_pixels(of, padded, u, [=](int64_t pixel, int64_t c, const Vector* at) {
        Vector e0 = four.one[0] * at[four.first[0]] + four.two[0] * at[four.second[0]];
        Vector e1 = four.one[1] * at[four.first[1]] + four.two[1] * at[four.second[1]];
        Vector e2 = four.one[2] * at[four.first[2]] + four.two[2] * at[four.second[2]];
        Vector e3 = four.one[3] * at[four.first[3]] + four.two[3] * at[four.second[3]];
        const float* w = weights + 16 * pixel;
        T* to = v + 4 * pixel * channels + c;
        Vector v0 = w[0] * e0 + w[1] * e1 + w[2] * e2 + w[3] * e3;
        Vector v1 = w[4] * e0 + w[5] * e1 + w[6] * e2 + w[7] * e3;
        Vector v2 = w[8] * e0 + w[9] * e1 + w[10] * e2 + w[11] * e3;
        Vector v3 = w[12] * e0 + w[13] * e1 + w[14] * e2 + w[15] * e3;
        store(to, v0), store(to + channels, v1), store(to + 2 * channels, v2), store(to + 3 * channels, v3);
    });
}

template <class T>
void apply_four_adjoint(const Generators& of, const PaddedImage& padded, const T* v, Vector* u) {
    const Four four(padded);
    const int64_t channels = of.channels;
    const float* weights = of.weights;
    for_pixels(of, padded, u, [=](int64_t pixel, int64_t c, Vector* at) {
        const float* w = weights + 16 * pixel;
        const T* from = v + 4 * pixel * channels + c;
        Vector v0 = load(from), v1 = load(from + channels), v2 = load(from + 2 * channels),
               v3 = load(from + 3 * channels);
        Vector e0 = w[0] * v0 + w[4] * v1 + w[8] * v2 + w[12] * v3;
        Vector e1 = w[1] * v0 + w[5] * v1 + w[9] * v2 + w[13] * v3;
        Vector e2 = w[2] * v0 + w[6] * v1 + w[10] * v2 + w[14] * v3;
        Vector e3 = w[3] * v0 + w[7] * v1 + w[11] * v2 + w[15] * v3;
        at[four.first[0]] += four.one[0] * e0, at[four.second[0]] += four.two[0] * e0;
        at[four.first[1]] += four.one[1] * e1, at[four.second[1]] += four.two[1] * e1;
        at[four.first[2]] += four.one[2] * e2, at[four.second[2]] += four.two[2] * e2;
        at[four.first[3]] += four.one[3] * e3, at[four.second[3]] += four.two[3] * e3;
    });
}

template <class T>
void run(const Generators& of, T* u, T* v, bool adjoint, int threads) {
    const PaddedImage padded(of);
    const bool four = of.stencils == 4 && of.generators == 4 && of.channels % LANES == 0 && padded.has_pairs_only(of);
#pragma omp parallel num_threads(threads)
    {
        std::unique_ptr<Vector[]> work(new Vector[padded.size()]()), e(new Vector[of.stencils]());
#pragma omp for schedule(static)
        for (int64_t n = 0; n < of.images; ++n) {
            T* image = u + n * of.height * of.width * of.channels;
            T* found = v + n * of.rows * of.columns * of.generators * of.channels;
            if (adjoint) std::fill_n(work.get(), padded.size(), Vector{});
            read(of, padded, image, work.get());
            if (adjoint) {
                four ? apply_four_adjoint(of, padded, found, work.get())
                     : apply_adjoint(of, padded, found, e.get(), work.get());
                write(of, padded, work.get(), image);
            } else {
                four ? apply_four(of, padded, work.get(), found) : apply(of, padded, work.get(), e.get(), found);
            }
        }
    }
}

}  // namespace

// v = V u, or u += V^T v if adjoint; u and v are bfloat16 if bf16, else single precision.
extern "C" void generators(const Generators* of, void* u, void* v, int bf16, int adjoint, int threads) {
    if (bf16)
        run(*of, static_cast<BFloat16*>(u), static_cast<BFloat16*>(v), adjoint, threads);
    else
        run(*of, static_cast<float*>(u), static_cast<float*>(v), adjoint, threads);
}

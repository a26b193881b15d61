// The forward pass of a convolutional network, a few images at a time through all of its layers, by the matrix
// units (AMX) or the vectors (AVX-512 BF16) of an x86 processor: what lies between two layers stays in the processor's cache.
//
// A place holds what some images are at one point of the network, channels-last, in bfloat16: a line of pixels with a
// zero behind each row and a row and one pixel of zeros behind each image, so that the pixels that a tap of a 3x3
// kernel sees are those of the tile, moved along the line, and nothing of one image meets another, not even times
// zero. A step makes one place of others:
//
//     y = max(floor, W * x + bias + r)        kernel 3 or 1, stride s; floor 0 (ReLU) or -inf
//     y = max(floor, scale x + bias + r)      kernel 0
//
// where r is nothing or a place: each `every`-th pixel of it, its channels from `before` on (shortcut A). Sums are
// single precision, and each step rounds once.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include <omp.h>

#include "products.h"

#ifdef RESODE_PRODUCTS

namespace {

using namespace resode;

struct Shape {
    int64_t channels, height, width;
};

struct Step {
    int64_t x, r, y;  // places; r is -1 for none
    int64_t kernel, stride, relu;
    int64_t every, before, taken;  // of r: pixels, and where its channels begin among those of y, and end
    const uint16_t* weight;  // (outputs / 16, kernel, values / 2, 16, 2); values: a row of the kernel, zeros to 16
    const float *bias, *scale;
};

struct Place {
    int64_t channels, height, width, pitch, image, length;
    Zeros<uint16_t> memory;
    std::vector<uint16_t> real;  // of each pixel of the line: all bits, or none for the zeros between

    void hold(const Shape& shape, int64_t images) {
        channels = shape.channels, height = shape.height, width = shape.width;
        pitch = width + 1, image = (height + 1) * pitch + 1, length = images * image;
        memory.resize((pitch + 1 + length + 4 * SIDE + 2 * pitch + 2 * SIDE + 4) * channels);
        real.assign(length + 4 * SIDE, 0);
        for (int64_t n = 0; n < images; ++n)
            for (int64_t h = 0; h < height; ++h)
                std::fill_n(real.begin() + n * image + h * pitch, width, uint16_t(0xffff));
    }
    uint16_t* at(int64_t pixel) { return memory.get() + (pitch + 1 + pixel) * channels; }
};

constexpr int64_t RUN = UNITS ? SIDE : 4;  // pixels

struct Tile {  // a run of pixels that are made at once: where their first tap is, and where they go
    int64_t source, place;
};

// The tiles of a convolution, for 64 pixels each time; the last may be done twice. Those of a row may reach into the
// next, which then overwrites what is not its own.
void divide(const Step& step, const Place& x, const Place& y, int64_t images, std::vector<Tile>& tiles) {
    int64_t corner = step.kernel == 3 ? x.pitch + 1 : 0;
    tiles.clear();
    if (UNITS && step.stride == 1)
        for (int64_t p = 0; p < y.length; p += SIDE) tiles.push_back({p - corner, p});
    else
        for (int64_t n = 0; n < images; ++n)
            for (int64_t h = 0; h < y.height; ++h)
                for (int64_t w = 0; w < y.width; w += RUN)
                    tiles.push_back({n * x.image + step.stride * (h * x.pitch + w) - corner,
                                     n * y.image + h * y.pitch + w});
    while (tiles.size() % (4 * SIDE / RUN)) tiles.push_back(tiles.back());
}

// Where each pixel of y finds what is added to it.
void find(const Step& step, const Place& r, const Place& y, int64_t images, std::vector<int32_t>& found) {
    found.assign(y.length + 4 * SIDE, 0);
    for (int64_t n = 0; n < images; ++n)
        for (int64_t h = 0; h < y.height; ++h)
            for (int64_t w = 0; w < y.width; ++w)
                found[n * y.image + h * y.pitch + w] =
                    int32_t(n * r.image + step.every * (h * r.pitch + w));
}

inline __m512 wide(__m256i half) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16); }

enum Added { NOTHING, SAME, FOUND };     // no r; r at the pixel itself; elsewhere, or its channels elsewhere
enum Layout { SINGLES, PAIRS, HALVES };  // of 64 x 16 sums: 64 pixels, which are neighbours in twos where a pixel
                                         // has 16 channels; or 2 x 16 pixels with two halves of 16 channels each

// Values of sums: r added, the floor, rounded and stored.
class Ending {
public:
    Ending(const Step& step, Place& r, Place& y, const std::vector<int32_t>& found)
        : r(r), y(y), found(found.data()), before(step.before), taken(step.taken),
          added(step.r < 0 ? NOTHING : found.empty() ? SAME : FOUND),
          least(_mm512_set1_ps(step.relu ? 0 : -std::numeric_limits<float>::infinity())) {}

    Place &r, &y;
    const int32_t* found;
    int64_t before, taken;
    Added added;
    __m512 least;

    Layout layout(bool wide) const {
        return wide ? HALVES : y.channels == SIDE && added != FOUND ? PAIRS : SINGLES;
    }

    template <Layout LAYOUT, Added ADDED>
    void lines(const float* sums, const Tile* tiles, int64_t o, int64_t from, int64_t to) const {
        for (int64_t line = from; line < to; ++line) {
            if constexpr (LAYOUT == SINGLES) {
                int64_t p = tiles[line / RUN].place + line % RUN;
                __m512 v = _mm512_load_ps(sums + line * SIDE);
                if constexpr (ADDED != NOTHING)
                    v = _mm512_add_ps(v, wide(_mm256_maskz_loadu_epi16(lanes<ADDED>(o, SIDE), other<ADDED>(p, o))));
                v = _mm512_max_ps(least, v);  // which keeps NaN
                _mm256_storeu_si256((__m256i*)(y.at(p) + o),
                                    _mm256_maskz_mov_epi16(y.real[p], (__m256i)_mm512_cvtneps_pbh(v)));
            } else {
                constexpr bool pairs = LAYOUT == PAIRS;
                int64_t p = pairs ? tiles[2 * line / RUN].place + 2 * line % RUN
                                  : tiles[line / SIDE].place + line % SIDE;
                const float* first = sums + (pairs ? 2 * line : line / SIDE * DEPTH + line % SIDE) * SIDE;
                __m512 v = _mm512_load_ps(first), w = _mm512_load_ps(first + (pairs ? SIDE : SIDE * SIDE));
                if constexpr (ADDED != NOTHING) {
                    __m512i both = _mm512_maskz_loadu_epi16(lanes<ADDED>(o, DEPTH), other<ADDED>(p, o));
                    v = _mm512_add_ps(v, wide(_mm512_castsi512_si256(both)));
                    w = _mm512_add_ps(w, wide(_mm512_extracti64x4_epi64(both, 1)));
                }
                auto both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_max_ps(least, w), _mm512_max_ps(least, v));
                __mmask32 real = pairs ? y.real[p] | uint32_t(y.real[p + 1]) << 16 : y.real[p] * 0x10001u;
                _mm512_storeu_si512(y.at(p) + o, _mm512_maskz_mov_epi16(real, both));
            }
        }
    }

private:
    template <Added ADDED>
    const uint16_t* other(int64_t p, int64_t o) const {
        return ADDED == SAME ? r.at(p) + o : r.at(found[p]) + o - before;
    }
    template <Added ADDED>
    uint32_t lanes(int64_t o, int64_t count) const {
        if (ADDED == SAME) return 0xffffffff;
        int64_t from = std::clamp<int64_t>(before - o, 0, count), to = std::clamp<int64_t>(taken - o, 0, count);
        return to > from ? uint32_t((1ull << to) - (1ull << from)) : 0;
    }
};

struct Source {  // what tiles of pixels are read from
    const uint16_t* x;
    int64_t channels, row, step, kernel, values;  // row: values to the next one; step: bytes to the next pixel
};

#ifdef RESODE_MATRIX_UNITS
#define RESODE_BIAS(TILE, OUTPUT) _tile_loadd(TILE, bias + o + OUTPUT, 0);  // a row, sixteen times
#endif

// A block of 64 x 16 sums. While the matrix units make it, the vector units end the one before, a part of it after
// each product.
template <Layout LAYOUT, Added ADDED>
struct Blocks {
    static constexpr bool WIDE = LAYOUT == HALVES;
    static constexpr int64_t LINES = LAYOUT == SINGLES ? 64 : 32, TILES = (WIDE ? 2 : 4) * SIDE / RUN;

    const Source& in;
    const Ending& ending;
    const float* bias;
    const int64_t o;  // the first output
    const Tile* before = nullptr;
    int64_t now = 0;
    alignas(64) float sums[2][4 * SIDE * SIDE];

    Blocks(const Source& in, const Ending& ending, const float* bias, int64_t o)
        : in(in), ending(ending), bias(bias), o(o) {}

    void run(const std::vector<Tile>& tiles, const uint16_t* weight) {
        for (size_t t = 0; t < tiles.size(); t += TILES) {
            WIDE ? square(&tiles[t], weight) : tall(&tiles[t], weight);
            before = &tiles[t], now = 1 - now;
        }
        end(0, LINES);
    }

    void end(int64_t from, int64_t to) {
        if (before) ending.template lines<LAYOUT, ADDED>(sums[1 - now], before, o, from, std::min(to, LINES));
    }

#ifdef RESODE_MATRIX_UNITS
    // 64 pixels, 16 outputs.
    void tall(const Tile* tiles, const uint16_t* weight) {
        int64_t done = 0, each = share();
        RESODE_BIAS(0, 0) RESODE_BIAS(1, 0) RESODE_BIAS(2, 0) RESODE_BIAS(3, 0)
#define RESODE_FOUR(A, B) \
        _tile_loadd(B, weight, 4 * SIDE); \
        _tile_loadd(A, x0, in.step); _tile_dpbf16ps(0, A, B); \
        _tile_loadd(A, x1, in.step); _tile_dpbf16ps(1, A, B); \
        _tile_loadd(A, x2, in.step); _tile_dpbf16ps(2, A, B); \
        _tile_loadd(A, x3, in.step); _tile_dpbf16ps(3, A, B);
        for (int64_t a = 0; a < in.kernel; ++a) {
            const uint16_t* row = in.x + a * in.row;
            const uint16_t *x0 = row + tiles[0].source * in.channels, *x1 = row + tiles[1].source * in.channels;
            const uint16_t *x2 = row + tiles[2].source * in.channels, *x3 = row + tiles[3].source * in.channels;
            for (int64_t k = 0; k < in.values; k += DEPTH) {
                if (k + DEPTH <= in.values) { RESODE_FOUR(4, 5) } else { RESODE_FOUR(6, 7) }
                x0 += DEPTH, x1 += DEPTH, x2 += DEPTH, x3 += DEPTH;
                weight += std::min(DEPTH, in.values - k) * SIDE;
                end(done, done + each);
                done += each;
            }
        }
#undef RESODE_FOUR
        store();
    }

    // 32 pixels, 32 outputs.
    void square(const Tile* tiles, const uint16_t* weight) {
        const uint16_t* other = weight + in.kernel * in.values * SIDE;
        int64_t done = 0, each = share();
        RESODE_BIAS(0, 0) RESODE_BIAS(1, SIDE) RESODE_BIAS(2, 0) RESODE_BIAS(3, SIDE)
        for (int64_t a = 0; a < in.kernel; ++a) {
            const uint16_t* row = in.x + a * in.row;
            const uint16_t *x0 = row + tiles[0].source * in.channels, *x1 = row + tiles[1].source * in.channels;
            for (int64_t k = 0; k < in.values; k += DEPTH) {
                _tile_loadd(4, x0 + k, in.step);
                _tile_loadd(6, weight, 4 * SIDE);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, other, 4 * SIDE);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, x1 + k, in.step);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
                weight += DEPTH * SIDE;
                other += DEPTH * SIDE;
                end(done, done + each);
                done += each;
            }
        }
        store();
    }

    void store() {
        float* to = sums[now];
        _tile_stored(0, to, 4 * SIDE);
        _tile_stored(1, to + 256, 4 * SIDE);
        _tile_stored(2, to + 512, 4 * SIDE);
        _tile_stored(3, to + 768, 4 * SIDE);
    }

    int64_t share() const {
        int64_t products = in.kernel * ((in.values + DEPTH - 1) / DEPTH);
        return (LINES + products - 1) / products;
    }
#else
    void tall(const Tile* tiles, const uint16_t* weight) {
        end(0, LINES);
        for (int64_t t = 0; t < TILES; t += 4) {
            Sums block(bias + o, 0);
            for (int64_t a = 0; a < in.kernel; ++a) {
                const uint16_t* x[4];
                for (int j = 0; j < 4; ++j) x[j] = in.x + a * in.row + tiles[t + j].source * in.channels;
                block.add(x, in.step / 2, weight + a * in.values * SIDE, in.values / 2);
            }
            block.store(sums[now] + t * RUN * SIDE, SIDE);
        }
    }

    void square(const Tile*, const uint16_t*) {}
#endif
};

template <Layout LAYOUT>
void output(const Source& in, const Ending& ending, const Step& step, const std::vector<Tile>& tiles, int64_t o) {
    const uint16_t* weight = step.weight + o * in.kernel * in.values;
    if (ending.added == NOTHING) Blocks<LAYOUT, NOTHING>(in, ending, step.bias, o).run(tiles, weight);
    else if (ending.added == SAME) Blocks<LAYOUT, SAME>(in, ending, step.bias, o).run(tiles, weight);
    else Blocks<LAYOUT, FOUND>(in, ending, step.bias, o).run(tiles, weight);
}

void convolve(const Step& step, Place& x, const Ending& ending, const std::vector<Tile>& tiles) {
    int64_t values = (step.kernel * x.channels + SIDE - 1) / SIDE * SIDE;
    Source in{x.at(0), x.channels, x.pitch * x.channels, 2 * step.stride * x.channels, step.kernel, values};
    for (int64_t o = 0; o < ending.y.channels;) {
        Layout layout = ending.layout(UNITS && values % DEPTH == 0 && o + DEPTH <= ending.y.channels);
        auto make = layout == HALVES ? output<HALVES> : layout == PAIRS ? output<PAIRS> : output<SINGLES>;
        make(in, ending, step, tiles, o);
        o += layout == HALVES ? DEPTH : SIDE;
    }
}

void scale(const Step& step, Place& x, const Ending& ending) {
    alignas(64) float sums[SIDE * SIDE];
    for (int64_t o = 0; o < x.channels; o += SIDE) {
        __m512 factor = _mm512_loadu_ps(step.scale + o), bias = _mm512_loadu_ps(step.bias + o);
        for (int64_t p = 0; p < x.length; p += SIDE) {
            for (int64_t j = 0; j < SIDE; ++j) {
                __m512 value = wide(_mm256_loadu_si256((const __m256i*)(x.at(p + j) + o)));
                _mm512_store_ps(sums + j * SIDE, _mm512_fmadd_ps(value, factor, bias));
            }
            Tile tiles[SIDE / RUN];
            for (int64_t k = 0; k < SIDE / RUN; ++k) tiles[k] = {0, p + k * RUN};
            if (ending.added == NOTHING) ending.lines<SINGLES, NOTHING>(sums, tiles, o, 0, SIDE);
            else if (ending.added == SAME) ending.lines<SINGLES, SAME>(sums, tiles, o, 0, SIDE);
            else ending.lines<SINGLES, FOUND>(sums, tiles, o, 0, SIDE);
        }
    }
}

// (channels, H, W) in single precision, up to four channels -> a place of four.
void enter(const float* x, int64_t channels, Place& to, int64_t n) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    int64_t area = to.height * to.width;
    for (int64_t h = 0; h < to.height; ++h)
        for (int64_t w = 0; w < to.width; w += SIDE) {
            int64_t count = std::min(SIDE, to.width - w);
            auto lanes = __mmask16((1u << count) - 1);
            __m512i half[4];
            for (int64_t c = 0; c < 4; ++c) {
                half[c] = _mm512_setzero_si512();
                if (c >= channels) continue;
                __m512 value = _mm512_maskz_loadu_ps(lanes, x + c * area + h * to.width + w);
                half[c] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
            }
            __m512i first = _mm512_or_si512(half[0], _mm512_slli_epi32(half[1], 16));
            __m512i second = _mm512_or_si512(half[2], _mm512_slli_epi32(half[3], 16));
            uint16_t* place = to.at(n * to.image + h * to.pitch + w);
            auto before = __mmask8((1u << std::min<int64_t>(count, 8)) - 1);
            auto behind = __mmask8(count > 8 ? (1u << (count - 8)) - 1 : 0);
            _mm512_mask_storeu_epi64(place, before, _mm512_permutex2var_epi32(first, low, second));
            _mm512_mask_storeu_epi64(place + 32, behind, _mm512_permutex2var_epi32(first, high, second));
        }
}

void average(Place& from, int64_t n, float* features) {
    for (int64_t o = 0; o < from.channels; o += SIDE) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t h = 0; h < from.height; ++h)
            for (int64_t w = 0; w < from.width; ++w) {
                const uint16_t* value = from.at(n * from.image + h * from.pitch + w) + o;
                sum = _mm512_add_ps(sum, wide(_mm256_loadu_si256((const __m256i*)value)));
            }
        _mm512_storeu_ps(features + o, _mm512_div_ps(sum, _mm512_set1_ps(float(from.height * from.width))));
    }
}

}  // namespace

// (images, channels, H, W) in single precision -> the means over pixels of the last place, (images, its channels).
extern "C" void infer(int64_t images, int64_t channels, int64_t places, int64_t count, int64_t last,
                      int64_t together, const Shape* shapes, const Step* steps, const float* x, float* features,
                      int threads) {
    together = std::max<int64_t>(std::min(together, (images + threads - 1) / threads), 1);
#pragma omp parallel num_threads(threads)
    {
        static thread_local std::vector<Place> held;
        if (int64_t(held.size()) < places) held.resize(places);
        for (int64_t k = 0; k < places; ++k) held[k].hold(shapes[k], together);
        std::vector<std::vector<Tile>> tiles(count);
        std::vector<std::vector<int32_t>> found(count);
        for (int64_t k = 0; k < count; ++k) {
            if (steps[k].kernel) divide(steps[k], held[steps[k].x], held[steps[k].y], together, tiles[k]);
            if (steps[k].r < 0) continue;
            const Place &r = held[steps[k].r], &y = held[steps[k].y];
            if (steps[k].every != 1 || steps[k].before || r.channels != y.channels)
                find(steps[k], r, y, together, found[k]);
        }
        Tiles halves;
        halves.shorten(6, 7, SIDE / 2);
        halves.begin();
        Tiles wholes;
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than asked for
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        int64_t size = channels * shapes[0].height * shapes[0].width, outputs = shapes[last].channels;
        bool half = true;
        for (int64_t n = begin; n < end; n += together) {
            int64_t now = std::min(together, end - n);
            for (int64_t k = 0; k < now; ++k) enter(x + (n + k) * size, channels, held[0], k);
            for (int64_t k = 0; k < count; ++k) {
                const Step& step = steps[k];
                Place &from = held[step.x], &y = held[step.y];
                Ending ending(step, held[std::max<int64_t>(step.r, 0)], y, found[k]);
                if (!step.kernel) {
                    scale(step, from, ending);
                    continue;
                }
                bool wanted = (step.kernel * from.channels + SIDE - 1) / SIDE % 2;
                if (wanted != half) (wanted ? halves : wholes).begin();
                half = wanted;
                convolve(step, from, ending, tiles[k]);
            }
            for (int64_t k = 0; k < now; ++k) average(held[last], k, features + (n + k) * outputs);
        }
        Tiles::end();
    }
}
#else
extern "C" void infer(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const void*, const float*,
                      float*, int) {}
#endif

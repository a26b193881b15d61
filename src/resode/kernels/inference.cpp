// The forward pass of a convolutional network, a few images at a time through all of its layers, by AMX tiles or
// AVX-512 BF16 vectors of an x86 processor: activations stay in the processor's cache between layers.
//
// A buffer holds the activations of a group of images at one point of the network, channels-last, in bfloat16: a line
// of pixels with a zero behind each row, and a row and one pixel of zeros behind each image. So each tap of a 3x3
// kernel reads the pixels of a tile shifted along the line, and no image is ever multiplied with another, not even by
// a zero (NaN stays in its image). A step computes one buffer from others:
//
//     y = max(floor, W * x + bias + r)        kernel 3 or 1, stride s; floor 0 (ReLU) or -inf
//     y = max(floor, scale x + bias + r)      kernel 0
//
// where r is nothing or a buffer: every r_stride-th pixel, its channels added to those of y from r_begin on (shortcut
// A). Sums are single precision, and each step rounds once.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include <omp.h>

#include "bf16.h"

#ifdef RESODE_BF16

namespace {

using namespace resode;

struct Shape {
    int64_t channels, height, width;
};

struct Step {
    int64_t x, r, y;  // buffers; r is -1 for none
    int64_t kernel, stride, relu;
    int64_t r_stride, r_begin, r_end;  // stride over pixels of r; it is added to the channels [r_begin, r_end) of y
    const uint16_t* weight;  // (outputs / 16, kernel, values / 2, 16, 2); values: a row of the kernel, zeros to 16
    const float *bias, *scale;
};

struct Buffer {
    int64_t channels, height, width, pitch, image, length;
    ZeroedBuffer<uint16_t> memory;
    std::vector<uint16_t> is_pixel;  // for each pixel of the line: all bits, or none for the zeros between

    void allocate(const Shape& shape, int64_t images) {
        channels = shape.channels, height = shape.height, width = shape.width;
        pitch = width + 1, image = (height + 1) * pitch + 1, length = images * image;
        memory.resize((pitch + 1 + length + 4 * SIDE + 2 * pitch + 2 * SIDE + 4) * channels);
        is_pixel.assign(length + 4 * SIDE, 0);
        for (int64_t n = 0; n < images; ++n)
            for (int64_t h = 0; h < height; ++h)
                std::fill_n(is_pixel.begin() + n * image + h * pitch, width, uint16_t(0xffff));
    }
    uint16_t* at(int64_t pixel) { return memory.get() + (pitch + 1 + pixel) * channels; }
};

constexpr int64_t RUN = AMX ? SIDE : 4;  // consecutive pixels of a tile

struct Tile {  // pixels that are computed at once: where their first tap is read, and where they are written
    int64_t source, target;
};

// The tiles of a convolution, in groups of 64 pixels; the last tile may be repeated to fill a group. A tile at the end
// of a row may reach into the next row, which is computed later and overwrites those pixels.
void make_tiles(const Step& step, const Buffer& x, const Buffer& y, int64_t images, std::vector<Tile>& tiles) {
    int64_t corner = step.kernel == 3 ? x.pitch + 1 : 0;
    tiles.clear();
    if (AMX && step.stride == 1)
        for (int64_t p = 0; p < y.length; p += SIDE) tiles.push_back({p - corner, p});
    else
        for (int64_t n = 0; n < images; ++n)
            for (int64_t h = 0; h < y.height; ++h)
                for (int64_t w = 0; w < y.width; w += RUN)
                    tiles.push_back({n * x.image + step.stride * (h * x.pitch + w) - corner,
                                     n * y.image + h * y.pitch + w});
    while (tiles.size() % (4 * SIDE / RUN)) tiles.push_back(tiles.back());
}

// For each pixel of y, the pixel of r that is added to it.
void find_r(const Step& step, const Buffer& r, const Buffer& y, int64_t images, std::vector<int32_t>& r_pixels) {
    r_pixels.assign(y.length + 4 * SIDE, 0);
    for (int64_t n = 0; n < images; ++n)
        for (int64_t h = 0; h < y.height; ++h)
            for (int64_t w = 0; w < y.width; ++w)
                r_pixels[n * y.image + h * y.pitch + w] =
                    int32_t(n * r.image + step.r_stride * (h * r.pitch + w));
}

inline __m512 widen(__m256i half) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16); }

enum Addend { NONE, SAME, INDEXED };     // no r; r at the same pixel and channels; r at other ones
enum Layout { SINGLES, PAIRS, HALVES };  // of 64 x 16 sums. SINGLES: 64 pixels, stored one by one; PAIRS: 64 pixels of
                                         // 16 channels, stored two at a time; HALVES: 32 pixels of 2 x 16 channels

// What follows the sums of a block: add r, take the maximum with the floor, round and store.
class Epilogue {
public:
    Epilogue(const Step& step, Buffer& r, Buffer& y, const std::vector<int32_t>& r_pixels)
        : r(r), y(y), r_pixels(r_pixels.data()), r_begin(step.r_begin), r_end(step.r_end),
          addend(step.r < 0 ? NONE : r_pixels.empty() ? SAME : INDEXED),
          least(_mm512_set1_ps(step.relu ? 0 : -std::numeric_limits<float>::infinity())) {}

    Buffer &r, &y;
    const int32_t* r_pixels;
    int64_t r_begin, r_end;
    Addend addend;
    __m512 least;

    Layout layout(bool square) const {
        return square ? HALVES : y.channels == SIDE && addend != INDEXED ? PAIRS : SINGLES;
    }

    template <Layout LAYOUT, Addend ADDEND>
    void lines(const float* sums, const Tile* tiles, int64_t o, int64_t from, int64_t to) const {
        for (int64_t line = from; line < to; ++line) {
            if constexpr (LAYOUT == SINGLES) {
                int64_t p = tiles[line / RUN].target + line % RUN;
                __m512 v = _mm512_load_ps(sums + line * SIDE);
                if constexpr (ADDEND != NONE)
                    v = _mm512_add_ps(v, widen(_mm256_maskz_loadu_epi16(r_mask<ADDEND>(o, SIDE), other<ADDEND>(p, o))));
                v = _mm512_max_ps(least, v);  // which keeps NaN
                _mm256_storeu_si256((__m256i*)(y.at(p) + o),
                                    _mm256_maskz_mov_epi16(y.is_pixel[p], (__m256i)_mm512_cvtneps_pbh(v)));
            } else {
                constexpr bool pairs = LAYOUT == PAIRS;
                int64_t p = pairs ? tiles[2 * line / RUN].target + 2 * line % RUN
                                  : tiles[line / SIDE].target + line % SIDE;
                const float* first = sums + (pairs ? 2 * line : line / SIDE * DEPTH + line % SIDE) * SIDE;
                __m512 v = _mm512_load_ps(first), w = _mm512_load_ps(first + (pairs ? SIDE : SIDE * SIDE));
                if constexpr (ADDEND != NONE) {
                    __m512i both = _mm512_maskz_loadu_epi16(r_mask<ADDEND>(o, DEPTH), other<ADDEND>(p, o));
                    v = _mm512_add_ps(v, widen(_mm512_castsi512_si256(both)));
                    w = _mm512_add_ps(w, widen(_mm512_extracti64x4_epi64(both, 1)));
                }
                auto both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_max_ps(least, w), _mm512_max_ps(least, v));
                __mmask32 mask = pairs ? y.is_pixel[p] | uint32_t(y.is_pixel[p + 1]) << 16 : y.is_pixel[p] * 0x10001u;
                _mm512_storeu_si512(y.at(p) + o, _mm512_maskz_mov_epi16(mask, both));
            }
        }
    }

private:
    template <Addend ADDEND>
    const uint16_t* other(int64_t p, int64_t o) const {
        return ADDEND == SAME ? r.at(p) + o : r.at(r_pixels[p]) + o - r_begin;
    }
    template <Addend ADDEND>
    uint32_t r_mask(int64_t o, int64_t count) const {
        if (ADDEND == SAME) return 0xffffffff;
        int64_t from = std::clamp<int64_t>(r_begin - o, 0, count), to = std::clamp<int64_t>(r_end - o, 0, count);
        return to > from ? uint32_t((1ull << to) - (1ull << from)) : 0;
    }
};

struct Source {  // the input of a convolution
    const uint16_t* x;
    int64_t channels, row, step, kernel, values;  // row: values to the next row; step: bytes to a tile's next pixel
};

#ifdef RESODE_AMX
#define RESODE_BIAS(TILE, OUTPUT) _tile_loadd(TILE, bias + o + OUTPUT, 0);  // one row for all 16 pixels
#endif

// A block of 64 x 16 sums. While AMX computes it, the vector units run the epilogue of the previous block, a part of it
// after each product.
template <Layout LAYOUT, Addend ADDEND>
struct Blocks {
    static constexpr bool WIDE = LAYOUT == HALVES;
    static constexpr int64_t LINES = LAYOUT == SINGLES ? 64 : 32, TILES = (WIDE ? 2 : 4) * SIDE / RUN;

    const Source& in;
    const Epilogue& epilogue;
    const float* bias;
    const int64_t o;  // the first output
    const Tile* previous = nullptr;
    int64_t now = 0;
    alignas(64) float sums[2][4 * SIDE * SIDE];

    Blocks(const Source& in, const Epilogue& epilogue, const float* bias, int64_t o)
        : in(in), epilogue(epilogue), bias(bias), o(o) {}

    void run(const std::vector<Tile>& tiles, const uint16_t* weight) {
        for (size_t t = 0; t < tiles.size(); t += TILES) {
            WIDE ? square(&tiles[t], weight) : tall(&tiles[t], weight);
            previous = &tiles[t], now = 1 - now;
        }
        end(0, LINES);
    }

    void end(int64_t from, int64_t to) {
        if (previous) epilogue.template lines<LAYOUT, ADDEND>(sums[1 - now], previous, o, from, std::min(to, LINES));
    }

#ifdef RESODE_AMX
    // 64 pixels by 16 output channels.
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

    // 32 pixels by 32 output channels.
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
void output(const Source& in, const Epilogue& epilogue, const Step& step, const std::vector<Tile>& tiles, int64_t o) {
    const uint16_t* weight = step.weight + o * in.kernel * in.values;
    if (epilogue.addend == NONE) Blocks<LAYOUT, NONE>(in, epilogue, step.bias, o).run(tiles, weight);
    else if (epilogue.addend == SAME) Blocks<LAYOUT, SAME>(in, epilogue, step.bias, o).run(tiles, weight);
    else Blocks<LAYOUT, INDEXED>(in, epilogue, step.bias, o).run(tiles, weight);
}

void convolve(const Step& step, Buffer& x, const Epilogue& epilogue, const std::vector<Tile>& tiles) {
    int64_t values = (step.kernel * x.channels + SIDE - 1) / SIDE * SIDE;
    Source in{x.at(0), x.channels, x.pitch * x.channels, 2 * step.stride * x.channels, step.kernel, values};
    for (int64_t o = 0; o < epilogue.y.channels;) {
        Layout layout = epilogue.layout(AMX && values % DEPTH == 0 && o + DEPTH <= epilogue.y.channels);
        auto make = layout == HALVES ? output<HALVES> : layout == PAIRS ? output<PAIRS> : output<SINGLES>;
        make(in, epilogue, step, tiles, o);
        o += layout == HALVES ? DEPTH : SIDE;
    }
}

void scale(const Step& step, Buffer& x, const Epilogue& epilogue) {
    alignas(64) float sums[SIDE * SIDE];
    for (int64_t o = 0; o < x.channels; o += SIDE) {
        __m512 factor = _mm512_loadu_ps(step.scale + o), bias = _mm512_loadu_ps(step.bias + o);
        for (int64_t p = 0; p < x.length; p += SIDE) {
            for (int64_t j = 0; j < SIDE; ++j) {
                __m512 value = widen(_mm256_loadu_si256((const __m256i*)(x.at(p + j) + o)));
                _mm512_store_ps(sums + j * SIDE, _mm512_fmadd_ps(value, factor, bias));
            }
            Tile tiles[SIDE / RUN];
            for (int64_t k = 0; k < SIDE / RUN; ++k) tiles[k] = {0, p + k * RUN};
            if (epilogue.addend == NONE) epilogue.lines<SINGLES, NONE>(sums, tiles, o, 0, SIDE);
            else if (epilogue.addend == SAME) epilogue.lines<SINGLES, SAME>(sums, tiles, o, 0, SIDE);
            else epilogue.lines<SINGLES, INDEXED>(sums, tiles, o, 0, SIDE);
        }
    }
}

// Image n, (channels, H, W) in single precision with up to four channels -> a buffer of four channels.
void load_image(const float* x, int64_t channels, Buffer& to, int64_t n) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    int64_t area = to.height * to.width;
    for (int64_t h = 0; h < to.height; ++h)
        for (int64_t w = 0; w < to.width; w += SIDE) {
            int64_t count = std::min(SIDE, to.width - w);
            auto mask = __mmask16((1u << count) - 1);
            __m512i half[4];
            for (int64_t c = 0; c < 4; ++c) {
                half[c] = _mm512_setzero_si512();
                if (c >= channels) continue;
                __m512 value = _mm512_maskz_loadu_ps(mask, x + c * area + h * to.width + w);
                half[c] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
            }
            __m512i first = _mm512_or_si512(half[0], _mm512_slli_epi32(half[1], 16));
            __m512i second = _mm512_or_si512(half[2], _mm512_slli_epi32(half[3], 16));
            uint16_t* target = to.at(n * to.image + h * to.pitch + w);
            auto low_pixels = __mmask8((1u << std::min<int64_t>(count, 8)) - 1);
            auto high_pixels = __mmask8(count > 8 ? (1u << (count - 8)) - 1 : 0);
            _mm512_mask_storeu_epi64(target, low_pixels, _mm512_permutex2var_epi32(first, low, second));
            _mm512_mask_storeu_epi64(target + 32, high_pixels, _mm512_permutex2var_epi32(first, high, second));
        }
}

void average(Buffer& from, int64_t n, float* features) {
    for (int64_t o = 0; o < from.channels; o += SIDE) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t h = 0; h < from.height; ++h)
            for (int64_t w = 0; w < from.width; ++w) {
                const uint16_t* value = from.at(n * from.image + h * from.pitch + w) + o;
                sum = _mm512_add_ps(sum, widen(_mm256_loadu_si256((const __m256i*)value)));
            }
        _mm512_storeu_ps(features + o, _mm512_div_ps(sum, _mm512_set1_ps(float(from.height * from.width))));
    }
}

}  // namespace

// (images, channels, H, W) in single precision -> the means over pixels of the last buffer, (images, its channels).
extern "C" void infer(int64_t images, int64_t channels, int64_t buffer_count, int64_t count, int64_t last,
                      int64_t group, const Shape* shapes, const Step* steps, const float* x, float* features,
                      int threads) {
    group = std::max<int64_t>(std::min(group, (images + threads - 1) / threads), 1);
#pragma omp parallel num_threads(threads)
    {
        static thread_local std::vector<Buffer> buffers;
        if (int64_t(buffers.size()) < buffer_count) buffers.resize(buffer_count);
        for (int64_t k = 0; k < buffer_count; ++k) buffers[k].allocate(shapes[k], group);
        std::vector<std::vector<Tile>> tiles(count);
        std::vector<std::vector<int32_t>> r_pixels(count);
        for (int64_t k = 0; k < count; ++k) {
            if (steps[k].kernel) make_tiles(steps[k], buffers[steps[k].x], buffers[steps[k].y], group, tiles[k]);
            if (steps[k].r < 0) continue;
            const Buffer &r = buffers[steps[k].r], &y = buffers[steps[k].y];
            if (steps[k].r_stride != 1 || steps[k].r_begin || r.channels != y.channels)
                find_r(steps[k], r, y, group, r_pixels[k]);
        }
        TileConfig half_tiles;
        half_tiles.shorten(6, 7, SIDE / 2);
        half_tiles.load();
        TileConfig whole_tiles;
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than requested
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        int64_t size = channels * shapes[0].height * shapes[0].width, outputs = shapes[last].channels;
        bool half_loaded = true;
        for (int64_t n = begin; n < end; n += group) {
            int64_t now = std::min(group, end - n);
            for (int64_t k = 0; k < now; ++k) load_image(x + (n + k) * size, channels, buffers[0], k);
            for (int64_t k = 0; k < count; ++k) {
                const Step& step = steps[k];
                Buffer &from = buffers[step.x], &y = buffers[step.y];
                Epilogue epilogue(step, buffers[std::max<int64_t>(step.r, 0)], y, r_pixels[k]);
                if (!step.kernel) {
                    scale(step, from, epilogue);
                    continue;
                }
                bool use_half = (step.kernel * from.channels + SIDE - 1) / SIDE % 2;
                if (use_half != half_loaded) (use_half ? half_tiles : whole_tiles).load();
                half_loaded = use_half;
                convolve(step, from, epilogue, tiles[k]);
            }
            for (int64_t k = 0; k < now; ++k) average(buffers[last], k, features + (n + k) * outputs);
        }
        TileConfig::release();
    }
}
#else
extern "C" void infer(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const void*, const float*,
                      float*, int) {}
#endif

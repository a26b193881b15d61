// A 3x3 convolution (stride s of 1 or 2, padding 1) of channels-last bfloat16 activations, by the matrix units
// (AMX) or the vectors (AVX-512 BF16) of an x86 processor, or its adjoint, to which another image may be added:
//
//     y[n][h][w][o] = sum over a, b, i of W[o][i][a][b] x[n][s h + a - 1][s w + b - 1][i]
//
// An image becomes a line of pixels, with a zero behind each row and a row of zeros between images, so that each
// of the nine shifts is one offset along the line. A tile holds 16 pixels that follow one another on the line, or
// every second one of those that do; vectors take four times four pixels of a row. The channels of the three pixels that a row of the kernel sees are neighbours
// in memory, and are multiplied 32 values at a time. With a stride of 2 rows of even and of odd numbers are two
// lines; the adjoint is then four sums, one for each kind of pixel, each over the part of the kernel that meets it.
// Sums are single precision, and are rounded once. Images are divided among threads in order.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "products.h"

#ifdef RESODE_PRODUCTS
#ifdef RESODE_MATRIX_UNITS
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace resode;

constexpr int64_t PIXELS = 512;  // of a line, about

struct Line {  // where the pixels of some images of the smaller side are
    int64_t height, width, pitch, image, tiles;
    Line(int64_t height, int64_t width, int64_t images)
        : height(height), width(width), pitch(width + 1), image((height + 1) * pitch),
          tiles((length(images) + 4 * SIDE - 1) / (4 * SIDE) * 4) {}
    int64_t length(int64_t images) const { return images * image - pitch - 1; }
};

struct Phase {  // a sum over rows of neighbours: of the whole kernel, or of the part that meets one kind of pixel
    int rows, across;
    int64_t offset[3];  // of each row, in pixels
    int tap[3][3];
    int64_t row, column;  // of the first pixel that gets it
    int64_t pairs(int64_t inputs) const { return (across * inputs + 1) / 2; }
    int64_t size(int64_t inputs, int64_t outputs) const { return rows * pairs(inputs) * 2 * outputs; }
};

struct Places {  // what is read and written at a line of pixels
    const uint16_t* x[3];
    int64_t rows, values, step;  // of the kernel; in a row of it; from one pixel to the next
    const int32_t* place;        // of each pixel among the results, or -1
    const uint16_t* other;       // to add, or nothing
    uint16_t* y;
    int64_t outputs;
    bool whole;  // no tile is a smaller one
    int64_t pairs() const { return (values + 1) / 2; }
    Places from(int64_t pixel) const {
        Places there = *this;
        for (int64_t a = 0; a < rows; ++a) there.x[a] += pixel * step;
        there.place += pixel;
        return there;
    }
};

int phases(int64_t stride, bool adjoint, int64_t pitch, int64_t odd, Phase* found) {
    if (!adjoint || stride == 1) {
        Phase& all = found[0] = {3, 3, {0, pitch, 2 * pitch}, {}, 0, 0};
        if (stride == 2) all.offset[0] = odd, all.offset[1] = 0, all.offset[2] = odd + 2 * pitch;
        for (int tap = 0; tap < 9; ++tap) all.tap[tap / 3][tap % 3] = adjoint ? 8 - tap : tap;
        return 1;
    }
    constexpr int TAPS[2][2] = {{1, 1}, {2, 0}};  // of pixels of even and odd numbers
    for (int kind = 0; kind < 4; ++kind) {
        int row = kind / 2, column = kind % 2;
        found[kind] = {1 + row, 1 + column, {pitch + 1, 2 * pitch + 1}, {}, row, column};
        for (int a = 0; a <= row; ++a)
            for (int b = 0; b <= column; ++b) found[kind].tap[a][b] = 3 * TAPS[row][a] + TAPS[column][b];
    }
    return 4;
}

struct Kernel {  // and how far apart in memory its outputs, inputs, rows and columns are
    const float* weight;
    int64_t output, input, row, column;
};

// The kernel in tiles: (outputs / 16, rows, pairs of values, 16, 2).
void arrange(const Phase& phase, int64_t inputs, int64_t outputs, const Kernel& kernel, uint16_t* to) {
    int64_t pairs = phase.pairs(inputs), tiles = outputs / SIDE;
    __m512i lanes = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(int(kernel.output)));
#pragma omp for
    for (int64_t j = 0; j < tiles * phase.rows; ++j)
        for (int64_t k = 0; k < pairs; ++k) {
            __m512i value[2] = {};
            for (int64_t l = 0; l < 2 && 2 * k + l < phase.across * inputs; ++l) {
                int64_t b = (2 * k + l) / inputs, i = (2 * k + l) % inputs;
                int tap = phase.tap[j % phase.rows][b];
                const float* from = kernel.weight + j / phase.rows * SIDE * kernel.output + i * kernel.input +
                                    tap / 3 * kernel.row + tap % 3 * kernel.column;
                value[l] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_i32gather_ps(lanes, from, 4)));
            }
            _mm512_storeu_si512(to + (j * pairs + k) * DEPTH, _mm512_or_si512(value[0], _mm512_slli_epi32(value[1], 16)));
        }
}

RESODE_INLINE void store(__m512 sum, const Places& at, int64_t pixel, int64_t o) {
    if (at.place[pixel] < 0) return;
    int64_t place = at.place[pixel] * at.outputs + o;
    if (at.other) {
        __m256i more = _mm256_loadu_si256((const __m256i*)(at.other + place));
        sum = _mm512_add_ps(sum, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(more), 16));
    }
    _mm256_storeu_si256((__m256i*)(at.y + place), (__m256i)_mm512_cvtneps_pbh(sum));
}

#ifdef RESODE_MATRIX_UNITS
void store(const float* sums, const Places& at, int64_t pixels, int64_t o) {
    for (int64_t p = 0; p < pixels; ++p) store(_mm512_load_ps(sums + p * SIDE), at, p, o);
}

#define RESODE_ZERO _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);

// 64 pixels, 16 outputs. A smaller tile, where the channels want one, ends each row of the kernel.
void tall(const Places& at, const uint16_t* weight, int64_t o, float* sums) {
    int64_t stride = 2 * at.step, tile = SIDE * at.step;
#define RESODE_FOUR(A, B) \
    _tile_loadd(B, weight, 4 * SIDE); \
    _tile_loadd(A, x, stride); _tile_dpbf16ps(0, A, B); \
    _tile_loadd(A, x + tile, stride); _tile_dpbf16ps(1, A, B); \
    _tile_loadd(A, x + 2 * tile, stride); _tile_dpbf16ps(2, A, B); \
    _tile_loadd(A, x + 3 * tile, stride); _tile_dpbf16ps(3, A, B);
    RESODE_ZERO
    for (int64_t a = 0; a < at.rows; ++a) {
        const uint16_t* x = at.x[a];
        int64_t k = 0;
        for (; k + DEPTH <= at.values; k += DEPTH, x += DEPTH, weight += DEPTH * SIDE) { RESODE_FOUR(4, 5) }
        if (k < at.values) {
            RESODE_FOUR(6, 7)
            weight += (at.values - k + 1) / 2 * DEPTH;
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    _tile_stored(1, sums + 256, 4 * SIDE);
    _tile_stored(2, sums + 512, 4 * SIDE);
    _tile_stored(3, sums + 768, 4 * SIDE);
    store(sums, at, 4 * SIDE, o);
}

// 32 pixels, 32 outputs, where there are whole tiles alone.
void square(const Places& at, const uint16_t* weight, int64_t o, float* sums) {
    int64_t stride = 2 * at.step, tile = SIDE * at.step;
    const uint16_t* other = weight + at.rows * at.values * SIDE;
    RESODE_ZERO
    for (int64_t a = 0; a < at.rows; ++a) {
        const uint16_t* x = at.x[a];
        for (int64_t k = 0; k < at.values; k += DEPTH, x += DEPTH) {
            _tile_loadd(4, x, stride);
            _tile_loadd(6, weight, 4 * SIDE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, other, 4 * SIDE);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x + tile, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            weight += DEPTH * SIDE;
            other += DEPTH * SIDE;
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    _tile_stored(2, sums + 256, 4 * SIDE);
    _tile_stored(1, sums + 512, 4 * SIDE);
    _tile_stored(3, sums + 768, 4 * SIDE);
    store(sums, at, 2 * SIDE, o);
    store(sums + 512, at, 2 * SIDE, o + SIDE);
}

void products(const Places& at, const uint16_t* weight, int64_t length, const int32_t*) {
    alignas(64) float sums[4 * SIDE * SIDE];
    int64_t block = at.rows * at.pairs() * DEPTH;
    for (int64_t o = 0; o < at.outputs;) {
        bool wide = at.whole && o + DEPTH <= at.outputs;
        for (int64_t p = 0; p < length; p += wide ? 2 * SIDE : 4 * SIDE)
            (wide ? square : tall)(at.from(p), weight, o, sums);
        o += wide ? DEPTH : SIDE;
        weight += (wide ? 2 : 1) * block;
    }
}
#else
// 16 outputs of 16 pixels, of which each four follow one another.
void products(const Places& at, const uint16_t* weight, int64_t length, const int32_t* fours) {
    static const float zeros[SIDE] = {};
    for (int64_t o = 0; o < at.outputs; o += SIDE, weight += at.rows * at.pairs() * DEPTH)
        for (const int32_t* four = fours; *four < length; four += 4) {
            Sums block(zeros, 0);
            for (int64_t a = 0; a < at.rows; ++a) {
                const uint16_t* x[4];
                for (int j = 0; j < 4; ++j) x[j] = at.x[a] + four[j] * at.step;
                block.add(x, at.step, weight + a * at.pairs() * DEPTH, at.pairs());
            }
            RESODE_ROWS store(block[row], at, four[row / 4] + row % 4, o);
        }
}
#endif

}  // namespace

// What makes products: nothing, vectors, or matrix units; -1 where the system does not permit these.
extern "C" int makes_products() {
#ifdef RESODE_MATRIX_UNITS
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 2 : -1;
#else
    return 1;
#endif
}

// Height and width are those of the larger image; inputs and outputs are the channels of x and y, and what the kernel
// calls so here.
extern "C" void convolution(int64_t images, int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                            int64_t stride, int adjoint, const uint16_t* x, const uint16_t* other, uint16_t* y,
                            const float* weight, int64_t each_output, int64_t each_input, int64_t each_row,
                            int64_t each_column, int threads) {
    Kernel kernel{weight, each_output, each_input, each_row, each_column};
    int64_t small = height / stride, narrow = width / stride;
    int64_t together = std::max<int64_t>(PIXELS / ((small + 1) * (narrow + 1)), 1);
    together = std::min(together, (images + threads - 1) / threads);
    Line line(small, narrow, together);
    int64_t step = adjoint ? 1 : stride, spread = adjoint ? stride : 1;  // of pixels that are read and written
    int64_t read = step * step, rows = height / (adjoint ? stride : 1), columns = width / (adjoint ? stride : 1);
    int64_t reach = step * (line.tiles * SIDE + 2 * line.pitch) + 16;  // of one of the lines that are read
    Phase phase[4];
    int kinds = phases(stride, adjoint != 0, line.pitch, reach, phase);
    int64_t tail = (3 * inputs % DEPTH + 1) / 2 * 2, size = 0;
    for (int k = 0; k < kinds; ++k) size += phase[k].size(inputs, outputs);
    static thread_local Zeros<uint16_t> arranged;
    arranged.resize(size);
    uint16_t* tiles = arranged.get();
#pragma omp parallel num_threads(threads)
    {
        for (int64_t k = 0, first = 0; k < kinds; first += phase[k++].size(inputs, outputs))
            arrange(phase[k], inputs, outputs, kernel, tiles + first);
        static thread_local Zeros<uint16_t> pixels;
        static thread_local Zeros<int32_t> place;
        pixels.resize((read > 1 ? 2 : 1) * reach * inputs);
        int64_t line_end = line.tiles * SIDE + 4;  // four pixels may begin with the last one
        place.resize(line_end);
        std::fill_n(place.get(), line_end, -1);
        for (int64_t n = 0; n < together; ++n)
            for (int64_t h = 0; h < small; ++h)
                for (int64_t w = 0; w < narrow; ++w)
                    place.get()[n * line.image + h * line.pitch + w] =
                        int32_t(((n * small + h) * spread * narrow + w) * spread);
        std::vector<int32_t> fours;  // the first of each four pixels of a row, for vectors
        for (int64_t n = 0; n < (UNITS ? 0 : together); ++n)
            for (int64_t h = 0; h < small; ++h)
                for (int64_t w = 0; w < narrow; w += 4) fours.push_back(int32_t(n * line.image + h * line.pitch + w));
        while (fours.size() % 4) fours.push_back(fours.back());
        fours.push_back(INT32_MAX);
        Tiles shapes;
        if (tail) shapes.shorten(6, 7, tail / 2);
        shapes.begin();
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than asked for
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        for (int64_t n = begin; n < end; n += together) {
            int64_t count = std::min(together, end - n), length = line.length(count);
            for (int64_t k = 0; k < count; ++k)
                for (int64_t h = 0; h < rows; ++h) {
                    int64_t to = step == 1 ? k * line.image + (h + 1) * line.pitch + 1
                                           : h % 2 * reach + 2 * (k * line.image + (h + 1) / 2 * line.pitch) + 1;
                    std::memcpy(pixels.get() + to * inputs, x + ((n + k) * rows + h) * columns * inputs,
                                2 * columns * inputs);
                }
            if (count < together) std::fill(place.get() + length, place.get() + line_end, -1);
            const uint16_t* factor = tiles;
            for (const Phase* each = phase; each < phase + kinds; ++each) {
                int64_t values = each->across * inputs;
                int64_t first = (n * height / (adjoint ? 1 : stride) + each->row) * (width / (adjoint ? 1 : stride)) +
                                each->column;
                Places at{{}, each->rows, values, step * inputs, place.get(),
                          other ? other + first * outputs : nullptr, y + first * outputs, outputs, tail == 0};
                for (int a = 0; a < each->rows; ++a) at.x[a] = pixels.get() + each->offset[a] * inputs;
                products(at, factor, length, fours.data());
                factor += each->size(inputs, outputs);
            }
        }
        Tiles::end();
    }
}
#else
extern "C" int makes_products() { return 0; }
extern "C" void convolution(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, const uint16_t*,
                            const uint16_t*, uint16_t*, const float*, int64_t, int64_t, int64_t, int64_t, int) {}
#endif

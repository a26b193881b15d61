// A 3x3 convolution (stride s of 1 or 2, padding 1) of channels-last bfloat16 activations, or its adjoint;
// by AMX tiles or AVX-512 BF16 vectors of an x86 processor:
//
//     y[n][h][w][o] = sum over a, b, i of W[o][i][a][b] x[n][s h + a - 1][s w + b - 1][i]
//
// The images are copied to a line of pixels, with a zero behind each row and a row of zeros between images, so that
// each of the nine shifts is one offset along the line. An AMX tile holds 16 consecutive pixels of the line (stride 1)
// or every second one of 32 (stride 2); vectors take four groups of four consecutive pixels. The channels of the three
// pixels under a row of the kernel are contiguous in memory; they are multiplied 32 values at a time. With stride 2,
// even and odd rows are two lines, and the adjoint is computed in four phases, one for each parity of row and column
// of an output pixel, each with the part of the kernel that reaches it. Sums are single precision and rounded once.
// Each thread has a contiguous range of images.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "bf16.h"

#ifdef RESODE_BF16
#ifdef RESODE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace resode;

constexpr int64_t PIXELS = 512;  // of a line, about; it then stays in the cache

struct Line {  // the layout of a group of images, of the smaller one of the two sizes
    int64_t height, width, pitch, image, tiles;
    Line(int64_t height, int64_t width, int64_t images)
        : height(height), width(width), pitch(width + 1), image((height + 1) * pitch),
          tiles((length(images) + 4 * SIDE - 1) / (4 * SIDE) * 4) {}
    int64_t length(int64_t images) const { return images * image - pitch - 1; }
};

struct Phase {  // a sum over the whole kernel, or over the part that reaches output pixels of one parity
    int rows, across;
    int64_t offset[3];  // of each row of the kernel along the line, in pixels
    int tap[3][3];
    int64_t row, column;  // of the first output pixel
    int64_t pairs(int64_t inputs) const { return (across * inputs + 1) / 2; }
    int64_t size(int64_t inputs, int64_t outputs) const { return rows * pairs(inputs) * 2 * outputs; }
};

struct Operands {  // inputs and outputs at one pixel of the line
    const uint16_t* x[3];
    int64_t rows, values, step;  // rows of the kernel; values under one row; values from one pixel to the next
    const int32_t* target;       // index of each pixel in the output; -1 between rows, where there is no output
    uint16_t* y;
    int64_t outputs;
    bool whole;  // the values fill whole tiles
    int64_t pairs() const { return (values + 1) / 2; }
    Operands from(int64_t pixel) const {
        Operands there = *this;
        for (int64_t a = 0; a < rows; ++a) there.x[a] += pixel * step;
        there.target += pixel;
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
    constexpr int TAPS[2][2] = {{1, 1}, {2, 0}};  // rows (and columns) of the kernel that reach even and odd pixels
    for (int kind = 0; kind < 4; ++kind) {
        int row = kind / 2, column = kind % 2;
        found[kind] = {1 + row, 1 + column, {pitch + 1, 2 * pitch + 1}, {}, row, column};
        for (int a = 0; a <= row; ++a)
            for (int b = 0; b <= column; ++b) found[kind].tap[a][b] = 3 * TAPS[row][a] + TAPS[column][b];
    }
    return 4;
}

struct Kernel {  // with its strides in memory
    const float* weight;
    int64_t output, input, row, column;
};

// Convert the kernel to bfloat16 in the order of tiles: (outputs / 16, rows, pairs of values, 16, 2).
void pack_kernel(const Phase& phase, int64_t inputs, int64_t outputs, const Kernel& kernel, uint16_t* to) {
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
            _mm512_storeu_si512(to + (j * pairs + k) * DEPTH,
                                _mm512_or_si512(value[0], _mm512_slli_epi32(value[1], 16)));
        }
}

RESODE_INLINE void store(__m512 sum, const Operands& at, int64_t pixel, int64_t o) {
    if (at.target[pixel] < 0) return;
    int64_t target = at.target[pixel] * at.outputs + o;
    _mm256_storeu_si256((__m256i*)(at.y + target), (__m256i)_mm512_cvtneps_pbh(sum));
}

#ifdef RESODE_AMX
void store(const float* sums, const Operands& at, int64_t pixels, int64_t o) {
    for (int64_t p = 0; p < pixels; ++p) store(_mm512_load_ps(sums + p * SIDE), at, p, o);
}

#define RESODE_ZERO _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);

// 64 pixels by 16 output channels. A shortened tile ends each row of the kernel unless its values fill whole tiles.
void tall(const Operands& at, const uint16_t* weight, int64_t o, float* sums) {
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

// 32 pixels by 32 output channels, if the values fill whole tiles.
void square(const Operands& at, const uint16_t* weight, int64_t o, float* sums) {
    int64_t stride = 2 * at.step, tile = SIDE * at.step;
    const uint16_t* second = weight + at.rows * at.values * SIDE;
    RESODE_ZERO
    for (int64_t a = 0; a < at.rows; ++a) {
        const uint16_t* x = at.x[a];
        for (int64_t k = 0; k < at.values; k += DEPTH, x += DEPTH) {
            _tile_loadd(4, x, stride);
            _tile_loadd(6, weight, 4 * SIDE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, second, 4 * SIDE);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x + tile, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            weight += DEPTH * SIDE;
            second += DEPTH * SIDE;
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    _tile_stored(2, sums + 256, 4 * SIDE);
    _tile_stored(1, sums + 512, 4 * SIDE);
    _tile_stored(3, sums + 768, 4 * SIDE);
    store(sums, at, 2 * SIDE, o);
    store(sums + 512, at, 2 * SIDE, o + SIDE);
}

void multiply(const Operands& at, const uint16_t* weight, int64_t length, const int32_t*) {
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
// 16 pixels, in four groups of four consecutive ones, by 16 output channels.
void multiply(const Operands& at, const uint16_t* weight, int64_t length, const int32_t* quads) {
    static const float zeros[SIDE] = {};
    for (int64_t o = 0; o < at.outputs; o += SIDE, weight += at.rows * at.pairs() * DEPTH)
        for (const int32_t* quad = quads; *quad < length; quad += 4) {
            Sums block(zeros, 0);
            for (int64_t a = 0; a < at.rows; ++a) {
                const uint16_t* x[4];
                for (int j = 0; j < 4; ++j) x[j] = at.x[a] + quad[j] * at.step;
                block.add(x, at.step, weight + a * at.pairs() * DEPTH, at.pairs());
            }
            RESODE_EACH_ROW store(block[row], at, quad[row / 4] + row % 4, o);
        }
}
#endif

}  // namespace

// 0: no bf16 instructions; 1: AVX-512 BF16; 2: AMX; -1: the operating system refuses AMX to this process.
extern "C" int bf16_instructions() {
#ifdef RESODE_AMX
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 2 : -1;
#else
    return 1;
#endif
}

// Height and width are those of the larger image. Inputs and outputs are the channels of x and y; for the adjoint the
// caller exchanges the strides of the kernel's first two dimensions.
extern "C" void convolution(int64_t images, int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                            int64_t stride, int adjoint, const uint16_t* x, uint16_t* y,
                            const float* weight, int64_t each_output, int64_t each_input, int64_t each_row,
                            int64_t each_column, int threads) {
    Kernel kernel{weight, each_output, each_input, each_row, each_column};
    int64_t small = height / stride, narrow = width / stride;
    int64_t group = std::max<int64_t>(PIXELS / ((small + 1) * (narrow + 1)), 1);
    group = std::min(group, (images + threads - 1) / threads);
    Line line(small, narrow, group);
    int64_t step = adjoint ? 1 : stride, spread = adjoint ? stride : 1;  // strides of reading and writing
    int64_t read = step * step, rows = height / (adjoint ? stride : 1), columns = width / (adjoint ? stride : 1);
    int64_t line_size = step * (line.tiles * SIDE + 2 * line.pitch) + 16;  // pixels of one line that is read
    Phase phase[4];
    int kinds = phases(stride, adjoint != 0, line.pitch, line_size, phase);
    int64_t tail = (3 * inputs % DEPTH + 1) / 2 * 2, size = 0;
    for (int k = 0; k < kinds; ++k) size += phase[k].size(inputs, outputs);
    static thread_local ZeroedBuffer<uint16_t> packed;
    packed.resize(size);
    uint16_t* tiles = packed.get();
#pragma omp parallel num_threads(threads)
    {
        for (int64_t k = 0, first = 0; k < kinds; first += phase[k++].size(inputs, outputs))
            pack_kernel(phase[k], inputs, outputs, kernel, tiles + first);
        static thread_local ZeroedBuffer<uint16_t> pixels;
        static thread_local ZeroedBuffer<int32_t> target;
        pixels.resize((read > 1 ? 2 : 1) * line_size * inputs);
        int64_t line_end = line.tiles * SIDE + 4;  // a group of four may begin at the last pixel
        target.resize(line_end);
        std::fill_n(target.get(), line_end, -1);
        for (int64_t n = 0; n < group; ++n)
            for (int64_t h = 0; h < small; ++h)
                for (int64_t w = 0; w < narrow; ++w)
                    target.get()[n * line.image + h * line.pitch + w] =
                        int32_t(((n * small + h) * spread * narrow + w) * spread);
        std::vector<int32_t> quads;  // first pixels of the groups of four, for vectors
        for (int64_t n = 0; n < (AMX ? 0 : group); ++n)
            for (int64_t h = 0; h < small; ++h)
                for (int64_t w = 0; w < narrow; w += 4) quads.push_back(int32_t(n * line.image + h * line.pitch + w));
        while (quads.size() % 4) quads.push_back(quads.back());
        quads.push_back(INT32_MAX);
        TileConfig config;
        if (tail) config.shorten(6, 7, tail / 2);
        config.load();
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than requested
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        for (int64_t n = begin; n < end; n += group) {
            int64_t count = std::min(group, end - n), length = line.length(count);
            for (int64_t k = 0; k < count; ++k)
                for (int64_t h = 0; h < rows; ++h) {
                    int64_t to = step == 1 ? k * line.image + (h + 1) * line.pitch + 1
                                           : h % 2 * line_size + 2 * (k * line.image + (h + 1) / 2 * line.pitch) + 1;
                    std::memcpy(pixels.get() + to * inputs, x + ((n + k) * rows + h) * columns * inputs,
                                2 * columns * inputs);
                }
            if (count < group) std::fill(target.get() + length, target.get() + line_end, -1);
            const uint16_t* factor = tiles;
            for (const Phase* each = phase; each < phase + kinds; ++each) {
                int64_t values = each->across * inputs;
                int64_t first = (n * height / (adjoint ? 1 : stride) + each->row) * (width / (adjoint ? 1 : stride)) +
                                each->column;
                Operands at{{}, each->rows, values, step * inputs, target.get(),
                            y + first * outputs, outputs, tail == 0};
                for (int a = 0; a < each->rows; ++a) at.x[a] = pixels.get() + each->offset[a] * inputs;
                multiply(at, factor, length, quads.data());
                factor += each->size(inputs, outputs);
            }
        }
        TileConfig::release();
    }
}
#else
extern "C" int bf16_instructions() { return 0; }
extern "C" void convolution(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, const uint16_t*,
                            const uint16_t*, uint16_t*, const float*, int64_t, int64_t, int64_t, int64_t, int) {}
#endif

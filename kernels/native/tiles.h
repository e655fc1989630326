// Products on tiles of 16 rows by 64 bytes (AMX). Included by linear.h.
#include <sys/syscall.h>
#include <unistd.h>

// Tiles have to be asked for: the kernel reserves room for their state.
static bool tiles_allowed() {
    static const bool allowed = [] {
        constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        const char* off = getenv("DSLC_NATIVE_TILES");
        return !(off && off[0] == '0') && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
    }();
    return allowed;
}

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {0};
    uint16_t bytes[16] = {0};
    uint8_t rows[16] = {0};
};

// Tiles 0-3 are sums, 4 and 5 inputs, the rest weights; `rows` of the first eight shapes that hold rows of x.
static void shape_tiles(int rows) {
    TileShapes shapes;
    for (int t = 0; t < 8; t++) shapes.bytes[t] = 64, shapes.rows[t] = (uint8_t)(t < 6 ? rows : 16);
    _tile_loadconfig(&shapes);
}

static void from_tiles(const float* sums, int rows, const Linear& w, int panel, float* out, size_t out_stride, Out how) {
    int left = w.n - panel * kPanel;
    if (left <= 0) return;
    for (int r = 0; r < rows; r++)
        put(out + r * out_stride + panel * kPanel, load(sums + r * kPanel), w.bias ? w.bias + panel * kPanel : nullptr, left,
            how);
}

static void rows_by_tiles(const uint16_t* x, size_t stride, int rows, const Linear& w, int first, int last, float* out,
                          size_t out_stride, Out how) {
    alignas(64) float sums[4][16 * kPanel];
    const long row_bytes = (long)stride * 2, panel_bytes = (long)w.panel_bytes();
    const int steps = w.padded_k / kInputs;
    int done = 0;
    __asm__ volatile("" ::: "memory");  // loads of tiles tell the compiler nothing of the memory they read
    if (rows >= 32) {
        shape_tiles(16);
        for (int p = first; p < last; p += 2) {
            const uint8_t *w0 = w.weight.data + p * panel_bytes, *w1 = w0 + panel_bytes;
            for (int r = 0; r + 32 <= rows; r += 32) {
                const uint8_t *x0 = (const uint8_t*)x + r * row_bytes, *x1 = x0 + 16 * row_bytes;
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
                for (int s = 0; s < steps; s++) {
                    _tile_loadd(4, x0 + s * 64, row_bytes);
                    _tile_loadd(5, x1 + s * 64, row_bytes);
                    _tile_loadd(6, w0 + s * 1024, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 5, 6);
                    _tile_loadd(7, w1 + s * 1024, 64);
                    _tile_dpbf16ps(2, 4, 7);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64);
                _tile_stored(2, sums[2], 64); _tile_stored(3, sums[3], 64);
                float* to = out + r * out_stride;
                from_tiles(sums[0], 16, w, p, to, out_stride, how);
                from_tiles(sums[1], 16, w, p, to + 16 * out_stride, out_stride, how);
                from_tiles(sums[2], 16, w, p + 1, to, out_stride, how);
                from_tiles(sums[3], 16, w, p + 1, to + 16 * out_stride, out_stride, how);
            }
        }
        done = rows / 32 * 32;
    }
    for (int r = done; r < rows; r += 16) {
        int now = rows - r < 16 ? rows - r : 16;
        shape_tiles(now);
        const uint8_t* x0 = (const uint8_t*)x + r * row_bytes;
        for (int p = first; p < last; p += 4) {
            const uint8_t* w0 = w.weight.data + p * panel_bytes;
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (int s = 0; s < steps; s++) {
                _tile_loadd(4, x0 + s * 64, row_bytes);
                _tile_loadd(6, w0 + s * 1024, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, w0 + panel_bytes + s * 1024, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(6, w0 + 2 * panel_bytes + s * 1024, 64);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(7, w0 + 3 * panel_bytes + s * 1024, 64);
                _tile_dpbf16ps(3, 4, 7);
            }
            _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64);
            _tile_stored(2, sums[2], 64); _tile_stored(3, sums[3], 64);
            for (int t = 0; t < 4; t++) from_tiles(sums[t], now, w, p + t, out + r * out_stride, out_stride, how);
        }
    }
    _tile_release();
}

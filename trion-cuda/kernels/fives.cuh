// Ternary weights of which five lie in a byte, 1.6 bits each, and their products by tensor cores (compute capability
// 8.0 and newer), where a warp multiplies 16 rows by 32 columns by 8 columns of activations at once.
//
// A piece is 8 rows by 320 columns, 512 bytes, 16 for each lane of a warp. Lane 4 r + c holds row r, columns 80 c to
// 80 c + 79, so that its activations are 80 bytes in a row: byte e of word j of its four has columns 20 j + 4 k + e of
// them, k = 0 to 4. These digits, trit + 1, most significant first, write a number v in base 3, and the byte is
// ceil(256 v / 243). So the number of the first n digits alone is byte * 3^n / 256.
#pragma once
#include "jobs.cuh"

#define PIECE_COLS 320
// Rows of a unit of work: two pieces of 8 rows, of a matrix, or with PAIR one of gate and one of up.
#define UNIT_ROWS 16
// Words of a lane's activations in a piece: word 5 j + k belongs to digit k of word j of the weights.
#define OWN 20

// d += a * b: lane 4 g + c has rows g and g + 8 of a and column g of b, numbers 4 c to 4 c + 3 and those 16 further on,
// and of d rows g and g + 8, columns 2 c and 2 c + 1.
DEVICE void multiply(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, int b0, int b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Of each byte the number D_k that digits 0 to k write, or with DIGITS digit k alone: D_k - 3 D_(k-1).
template <bool DIGITS>
DEVICE void decode(u32 word, u32 (&d)[5]) {
    // Two bytes of a register, so that each has room for its product; then the upper halves of all four.
    u32 even = __byte_perm(word, 0, 0x4240), odd = __byte_perm(word, 0, 0x4341);
    d[0] = __byte_perm(even * 3, odd * 3, 0x7351);
    d[1] = __byte_perm(even * 9, odd * 9, 0x7351);
    d[2] = __byte_perm(even * 27, odd * 27, 0x7351);
    d[3] = __byte_perm(even * 81, odd * 81, 0x7351);
    d[4] = __byte_perm(even * 243, odd * 243, 0x7351);
    if (DIGITS) {
        // What a byte borrows from the next one it has given back in the end, since every digit is 0, 1 or 2.
#pragma unroll
        for (int k = 4; k > 0; k--) d[k] -= 3 * d[k - 1];
    }
}

// d += the products of a unit's piece of 320 columns, `first` its rows 0 to 7, with the lane's own activations.
template <bool DIGITS>
DEVICE void multiply_unit(int (&d)[4], const uint4& first, const uint4& second, const int (&x)[OWN]) {
    const u32 a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        u32 a0[5], a1[5], a2[5], a3[5];
        decode<DIGITS>(a[j], a0);
        decode<DIGITS>(b[j], a1);
        decode<DIGITS>(a[j + 1], a2);
        decode<DIGITS>(b[j + 1], a3);
#pragma unroll
        for (int k = 0; k < 5; k++) multiply(d, a0[k], a1[k], a2[k], a3[k], x[5 * j + k], x[5 * j + 5 + k]);
    }
}

// A lane's 80 bytes of activations; zeros without any.
DEVICE void load_own(int (&x)[OWN], const int4* from) {
#pragma unroll
    for (int i = 0; i < OWN / 4; i++) {
        int4 four = from ? from[i] : int4{};
        x[4 * i] = four.x;
        x[4 * i + 1] = four.y;
        x[4 * i + 2] = four.z;
        x[4 * i + 3] = four.w;
    }
}

// 16 bytes from device memory on their way to shared memory, zeros if there is nothing; what this thread has begun
// makes groups, and is there when no more than so many groups are on their way.
DEVICE void copy_16(void* to, const void* from, bool is_there = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}
DEVICE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
DEVICE void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// What a launch makes: one matrix, up to three that share an input, or gate and up. A kernel for one matrix, which need
// not ask which it is at, takes 5 % less time.
enum Launch { ONE, SEVERAL, PAIR };

template <Launch LAUNCH>
DEVICE Job job_with(const Jobs& jobs, int& unit) {
    return LAUNCH == SEVERAL ? job_of(jobs, unit) : jobs.job[0];
}

// Where a unit begins: its first piece, of rows 0 to 7.
template <Launch LAUNCH>
DEVICE const uint4* unit_of(const Jobs& jobs, int unit, int tiles) {
    const uint4* weights = job_with<LAUNCH>(jobs, unit).weights;
    return weights + (size_t)unit * (LAUNCH == PAIR ? 32 : 64) * tiles;
}

// How far behind a unit's piece of rows 0 to 7 that of rows 8 to 15 lies.
template <Launch LAUNCH>
DEVICE ptrdiff second_piece(const Jobs& jobs, int tiles) {
    return LAUNCH == PAIR ? jobs.job[1].weights - jobs.job[0].weights : tiles * 32;
}

// What becomes of the sums of a row of a unit, `sum` and of a pair that of the same row of up, for token `t`.
template <Launch LAUNCH>
DEVICE void finish(const Jobs& jobs, int unit, int row, int t, int sum, int sum_up, Scale s) {
    const Job job = job_with<LAUNCH>(jobs, unit);
    row += unit * (LAUNCH == PAIR ? 8 : UNIT_ROWS);
    if (row >= job.rows) return;
    float y = rescale(job, sum - s.sum, s.scale);
    float* out = job.out + (size_t)t * job.rows + row;
    if (LAUNCH == PAIR) {
        *out = activate(job.sink, y, rescale(jobs.job[1], sum_up - s.sum, s.scale));
    } else {
        put(job.sink, out, y);
    }
}

// What a launch that makes products of ternary matrices is told.
#pragma once
#include "common.cuh"

// One matrix of a launch. `divide` chooses the rule of rescaling.
struct Job {
    const uint4* weights;
    float* out;
    float scale;
    int divide;
    int rows;
    int sink;
};
// Matrices that share an input: query, key and value, or gate and up.
struct Jobs {
    Job job[3];
    // Where the second and the third begin in the grid.
    int begin[2];
};

DEVICE float rescale(const Job& job, int acc, float s) {
    return job.divide ? div((float)acc, mul(job.scale, s)) : mul(div((float)acc, s), job.scale);
}

// Which matrix a piece of the rows belongs to, and the piece's number in it.
DEVICE Job job_of(const Jobs& jobs, int& piece) {
    if (piece >= jobs.begin[1]) {
        piece -= jobs.begin[1];
        return jobs.job[2];
    }
    if (piece >= jobs.begin[0]) {
        piece -= jobs.begin[0];
        return jobs.job[1];
    }
    return jobs.job[0];
}

// Token dispatch and combine over MPI_Alltoallv: the same shape, the same rows, the same sums as `te bench moe`.
// A token travels once to each rank that has one of its experts; own rows are not sent; the counts exchange is MPI_Alltoall.
// Rows are added up by the library's own kernel (Sources/CPlatform/sum.c), so that adding is not slower here. The library
// differs in what it exchanges and when, and in that a rank's own results are added where they lie, in one pass with the others'.
// Usage: mpirun -n EP mpi_peer TOKENS WARM_UP STEPS sender|receiver; rank 0 prints the median microseconds of a step.
#include "CPlatform.h"
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 7168, EXPERTS = 256, TOP_K = 8, SCALES = 56, META = 48, CHOICES = 4 };
enum { ROW = HIDDEN + SCALES * 4 + META };

typedef uint16_t bf16;
static int ranks, rank, tokens, is_sender;
static int owner(int expert) {
    int few = EXPERTS / ranks, more = EXPERTS % ranks, border = more * (few + 1);
    return expert < border ? expert / (few + 1) : more + (expert - border) / few;
}
static void *memory(size_t bytes) {
    void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + 4096);
    if (!p) { fprintf(stderr, "no %zu bytes of memory\n", bytes); MPI_Abort(MPI_COMM_WORLD, 1); }
    memset(p, 0, bytes);
    return p;
}
static uint64_t state;
static uint32_t next_random(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33);
}
static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct step {
    unsigned char *tokens_in, *send, *receive, *grouped;
    float *scales, *grouped_scales, *weights;
    bf16 *outputs, *result, *rows_out, *rows_in;
    float *partial_out, *partial_in;
    int *list, *start, *rows, *from, *copies_to, *copies_from;
    int *send_bytes, *send_at, *receive_bytes, *receive_at, *place, *position;
};
static struct step s;

// Counts rows for each rank, lists them, packs those of others.
static void pack(const int *experts) {
    static int last[4096], next[4096];
    for (int r = 0; r < ranks; r++) s.rows[r] = s.copies_to[r] = 0, last[r] = -1;
    for (int t = 0; t < tokens; t++)
        for (int k = 0; k < TOP_K; k++) {
            int r = owner(experts[t * TOP_K + k]);
            s.copies_to[r]++;
            if (last[r] != t) last[r] = t, s.rows[r]++;
        }
    int total = 0;
    for (int r = 0; r < ranks; r++) s.start[r] = next[r] = total, total += s.rows[r], last[r] = -1;
    for (int t = 0; t < tokens; t++)
        for (int k = 0; k < TOP_K; k++) {
            int r = owner(experts[t * TOP_K + k]);
            if (last[r] != t) last[r] = t, s.list[next[r]++] = t;
        }
    size_t at = 0;
    for (int r = 0; r < ranks; r++) {
        s.send_at[r] = (int)(at / 16);
        int first = (EXPERTS / ranks) * r + (r < EXPERTS % ranks ? r : EXPERTS % ranks);
        for (int i = 0; i < s.rows[r]; i++) {
            int t = s.list[s.start[r] + i];
            unsigned char *row = s.send + at;
            float *weights = (float *)row;
            uint16_t *local = (uint16_t *)(row + TOP_K * 4);
            for (int k = 0; k < TOP_K; k++) {
                int e = experts[t * TOP_K + k];
                weights[k] = s.weights[t * TOP_K + k];
                local[k] = owner(e) == r ? (uint16_t)(e - first) : 0xFFFF;
            }
            at += META;
            if (r != rank) {
                memcpy(row + META, s.scales + (size_t)t * SCALES, SCALES * 4);
                memcpy(row + META + SCALES * 4, s.tokens_in + (size_t)t * HIDDEN, HIDDEN);
                at += ROW - META;
            }
        }
        s.send_bytes[r] = r == rank ? 0 : s.rows[r] * (ROW / 16);
    }
}

static const unsigned char *row_of(int r, int i) {
    return r == rank ? s.send + (size_t)s.send_at[r] * 16 + (size_t)i * META
                     : s.receive + (size_t)s.receive_at[r] * 16 + (size_t)i * ROW;
}

// Puts rows in the order of experts.
static void sort_rows(void) {
    static int count[EXPERTS + 1], cursor[EXPERTS + 1];
    memset(count, 0, sizeof count);
    for (int r = 0; r < ranks; r++)
        for (int i = 0; i < s.from[r]; i++) {
            const uint16_t *local = (const uint16_t *)(row_of(r, i) + TOP_K * 4);
            for (int k = 0; k < TOP_K; k++) if (local[k] != 0xFFFF) count[local[k]]++;
        }
    for (int e = 0, at = 0; e < EXPERTS; e++) cursor[e] = at, at += count[e];
    int copy = 0;
    for (int r = 0; r < ranks; r++) {
        s.copies_from[r] = 0;
        for (int i = 0; i < s.from[r]; i++) {
            const unsigned char *row = row_of(r, i);
            const uint16_t *local = (const uint16_t *)(row + TOP_K * 4);
            int t = r == rank ? s.list[s.start[r] + i] : 0;
            const void *scales = r == rank ? (const void *)(s.scales + (size_t)t * SCALES) : row + META;
            const void *bytes = r == rank ? s.tokens_in + (size_t)t * HIDDEN : row + META + SCALES * 4;
            for (int k = 0; k < TOP_K; k++) {
                if (local[k] == 0xFFFF) continue;
                int place = cursor[local[k]]++;
                memcpy(s.grouped + (size_t)place * HIDDEN, bytes, HIDDEN);
                memcpy(s.grouped_scales + (size_t)place * SCALES, scales, SCALES * 4);
                s.place[copy++] = place;
                s.copies_from[r]++;
            }
        }
    }
}

static void add(const void *const *rows, const float *weights, size_t count, int type, void *sum, int sum_type) {
    struct te_terms terms = {rows, weights, count, NULL, 0, 0};
    te_weighted_sum(&terms, type, sum, sum_type, HIDDEN);
}

static void combine_sender(const int *experts, MPI_Datatype unit) {
    int copy = 0;
    size_t at = 0;
    for (int r = 0; r < ranks; r++) {
        int first = (int)at;
        for (int i = 0; i < s.from[r]; i++, at++) {
            const unsigned char *row = row_of(r, i);
            const float *weights = (const float *)row;
            const uint16_t *local = (const uint16_t *)(row + TOP_K * 4);
            const void *terms[TOP_K];
            float factors[TOP_K];
            size_t count = 0;
            for (int k = 0; k < TOP_K; k++) {
                if (local[k] == 0xFFFF) continue;
                terms[count] = s.outputs + (size_t)s.place[copy++] * HIDDEN;
                factors[count++] = weights[k];
            }
            add(terms, factors, count, te_bfloat16, s.partial_out + at * HIDDEN, te_float32);
        }
        s.receive_at[r] = first;  // only now: row_of looks where the rows of the dispatch are
        s.receive_bytes[r] = r == rank ? 0 : s.from[r];
        s.send_at[r] = s.start[r];
        s.send_bytes[r] = r == rank ? 0 : s.rows[r];
    }
    MPI_Alltoallv(s.partial_out, s.receive_bytes, s.receive_at, unit, s.partial_in, s.send_bytes, s.send_at, unit,
        MPI_COMM_WORLD);
    static int next[4096], last[4096];
    for (int r = 0; r < ranks; r++) next[r] = 0, last[r] = -1;
    for (int t = 0; t < tokens; t++) {
        const void *terms[TOP_K];
        const float ones[TOP_K] = {1, 1, 1, 1, 1, 1, 1, 1};
        size_t count = 0;
        for (int k = 0; k < TOP_K; k++) {
            int r = owner(experts[t * TOP_K + k]);
            if (last[r] == t) continue;
            last[r] = t;
            int i = next[r]++;
            terms[count++] = r == rank ? s.partial_out + ((size_t)s.receive_at[r] + i) * HIDDEN
                                       : s.partial_in + ((size_t)s.start[r] + i) * HIDDEN;
        }
        add(terms, ones, count, te_float32, s.result + (size_t)t * HIDDEN, te_bfloat16);
    }
}

static void combine_receiver(const int *experts, MPI_Datatype unit) {
    int copy = 0, at = 0;
    static int next[4096];
    for (int r = 0; r < ranks; r++) {
        s.receive_at[r] = copy;
        for (int i = 0; i < s.copies_from[r]; i++, copy++)
            memcpy(s.rows_out + (size_t)copy * HIDDEN, s.outputs + (size_t)s.place[copy] * HIDDEN, HIDDEN * 2);
        s.receive_bytes[r] = r == rank ? 0 : s.copies_from[r];
        s.send_at[r] = next[r] = at;
        s.send_bytes[r] = r == rank ? 0 : s.copies_to[r];
        at += s.copies_to[r];
    }
    MPI_Alltoallv(s.rows_out, s.receive_bytes, s.receive_at, unit, s.rows_in, s.send_bytes, s.send_at, unit,
        MPI_COMM_WORLD);
    for (int t = 0; t < tokens; t++) {
        const void *terms[TOP_K];
        for (int k = 0; k < TOP_K; k++) {
            int r = owner(experts[t * TOP_K + k]), i = next[r]++;
            terms[k] = r == rank ? s.rows_out + ((size_t)s.receive_at[r] + i - s.send_at[r]) * HIDDEN
                                 : s.rows_in + (size_t)i * HIDDEN;
        }
        add(terms, s.weights + t * TOP_K, TOP_K, te_bfloat16, s.result + (size_t)t * HIDDEN, te_bfloat16);
    }
}

static void allocate(void) {
    size_t rows = (size_t)tokens * (TOP_K < ranks ? TOP_K : ranks), all = (size_t)tokens * ranks;
    size_t copies = (size_t)tokens * TOP_K * 2 + 4096;
    s.tokens_in = memory((size_t)tokens * HIDDEN);
    s.scales = memory((size_t)tokens * SCALES * 4);
    s.weights = memory((size_t)tokens * TOP_K * 4);
    s.send = memory(rows * ROW);
    s.receive = memory(all * ROW);
    s.grouped = memory(copies * HIDDEN);
    s.grouped_scales = memory(copies * SCALES * 4);
    s.outputs = memory(copies * HIDDEN * 2);
    s.result = memory((size_t)tokens * HIDDEN * 2);
    if (is_sender) s.partial_out = memory(all * HIDDEN * 4), s.partial_in = memory(rows * HIDDEN * 4);
    else s.rows_out = memory(copies * HIDDEN * 2), s.rows_in = memory((size_t)tokens * TOP_K * HIDDEN * 2);
    s.list = memory(rows * 4);
    s.place = memory(copies * 4);
    int **small[] = {&s.start, &s.rows, &s.from, &s.copies_to, &s.copies_from, &s.send_bytes, &s.send_at,
        &s.receive_bytes, &s.receive_at};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) *small[i] = memory((size_t)ranks * 4);
    for (int i = 0; i < tokens * TOP_K; i++) s.weights[i] = 1.0f / TOP_K;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc != 5) return 2;
    tokens = atoi(argv[1]);
    int warm_up = atoi(argv[2]), steps = atoi(argv[3]);
    is_sender = !strcmp(argv[4], "sender");
    allocate();
    state = (uint64_t)rank + 1;
    int *choices = memory((size_t)CHOICES * tokens * TOP_K * 4), pool[EXPERTS];
    for (int i = 0; i < EXPERTS; i++) pool[i] = i;
    for (int t = 0; t < CHOICES * tokens; t++)
        for (int k = 0; k < TOP_K; k++) {
            int other = k + (int)(next_random() % (EXPERTS - k)), kept = pool[k];
            pool[k] = pool[other], pool[other] = kept;
            choices[t * TOP_K + k] = pool[k];
        }
    MPI_Datatype unit, row;
    MPI_Type_contiguous(16, MPI_BYTE, &unit);
    MPI_Type_contiguous(is_sender ? HIDDEN * 4 : HIDDEN * 2, MPI_BYTE, &row);
    MPI_Type_commit(&unit), MPI_Type_commit(&row);
    double *times = memory((size_t)steps * sizeof *times);
    for (int step = -warm_up; step < steps; step++) {
        const int *experts = choices + (size_t)((step + warm_up) % CHOICES) * tokens * TOP_K;
        double start = MPI_Wtime();
        pack(experts);
        MPI_Alltoall(s.rows, 1, MPI_INT, s.from, 1, MPI_INT, MPI_COMM_WORLD);
        for (int r = 0, at = 0; r < ranks; r++) {
            s.receive_at[r] = at;
            s.receive_bytes[r] = r == rank ? 0 : s.from[r] * (ROW / 16);
            at += s.receive_bytes[r];
        }
        MPI_Alltoallv(s.send, s.send_bytes, s.send_at, unit, s.receive, s.receive_bytes, s.receive_at, unit,
            MPI_COMM_WORLD);
        sort_rows();
        if (is_sender) combine_sender(experts, row);
        else combine_receiver(experts, row);
        if (step >= 0) times[step] = MPI_Wtime() - start;
    }
    qsort(times, (size_t)steps, sizeof *times, by_value);
    if (rank == 0) printf("{\"us\": %.3f}\n", times[steps / 2] * 1e6);
    MPI_Finalize();
    return 0;
}

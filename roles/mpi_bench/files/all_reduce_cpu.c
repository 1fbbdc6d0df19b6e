/* lambdactl's CPU benchmark: MPI_Allreduce between nodes without a GPU, reported in the layout of nccl-tests.
 *
 * It says whether a cluster's MPI set-up works and what the network between the hosts' CPUs gives. It says nothing about
 * GPUs or RDMA between them: for that there are the NCCL tests (https://github.com/NVIDIA/nccl-tests), whose flags, columns
 * and formulas it follows (doc/PERFORMANCE.md there): algbw = size / time, busbw = algbw * 2(n-1)/n, 1 GB = 10^9 bytes.
 *
 * Copyright: lambdactl contributors. Apache-2.0.
 */
#include <errno.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION "1.0"

struct options {
  size_t min_bytes, max_bytes, step_bytes;
  long factor, iterations, warmup, check;
};

struct result {
  double seconds; /* mean over the ranks of the time of one iteration */
  long wrong;     /* wrong elements over all ranks, -1 when not checked */
};

static int rank, ranks;

static void usage(FILE *out) {
  fprintf(out,
          "USAGE: all_reduce_cpu [-b,--minbytes <min size>] [-e,--maxbytes <max size>] [-i,--stepbytes <step size>]\n"
          "       [-f,--stepfactor <factor>] [-n,--iters <iterations>] [-w,--warmup_iters <iterations>]\n"
          "       [-c,--check <0/1>] [-t <1>] [-g <1>] [-h,--help]\n"
          "Sizes take K, M and G (powers of 1024). -t and -g exist for nccl-tests' command lines and must be 1.\n");
}

static void die(const char *message, const char *value) {
  if (rank == 0) {
    fprintf(stderr, "all_reduce_cpu: %s '%s'\n", message, value);
    usage(stderr);
  }
  MPI_Finalize();
  exit(6); /* nccl-tests' code for invalid usage */
}

static size_t parse_size(const char *text, const char *flag) {
  char *end = NULL;
  errno = 0;
  double value = strtod(text, &end);
  switch (*end) {
    case 'g': case 'G': value *= 1024; /* fall through */
    case 'm': case 'M': value *= 1024; /* fall through */
    case 'k': case 'K': value *= 1024; end++; break;
    default: break;
  }
  if (end == text || *end != '\0' || errno != 0 || !(value >= 0) || value > (double)(1ull << 46)) die(flag, text);
  return (size_t)value;
}

static long parse_number(const char *text, long low, long high, const char *flag) {
  char *end = NULL;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (end == text || *end != '\0' || errno != 0 || value < low || value > high) die(flag, text);
  return value;
}

/* "--minbytes" and "-b" both give 'b'; 0 for anything else. */
static int flag_letter(const char *argument) {
  static const struct { const char *name; char letter; } names[] = {
      {"--minbytes", 'b'}, {"--maxbytes", 'e'}, {"--stepbytes", 'i'},    {"--stepfactor", 'f'}, {"--iters", 'n'},
      {"--warmup_iters", 'w'}, {"--check", 'c'}, {"--nthreads", 't'}, {"--ngpus", 'g'},      {"--help", 'h'}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(argument, names[i].name) == 0) return names[i].letter;
  return argument[0] == '-' && argument[1] != '\0' && argument[2] == '\0' ? argument[1] : 0;
}

static struct options parse(int argc, char **argv) {
  struct options o = {32u << 20, 32u << 20, 1u << 20, 1, 20, 1, 1};
  for (int i = 1; i < argc; i++) {
    int letter = flag_letter(argv[i]);
    if (letter == 'h') {
      if (rank == 0) usage(stdout);
      MPI_Finalize();
      exit(0);
    }
    if (letter == 0 || strchr("beifnwctg", letter) == NULL) die("unknown option", argv[i]);
    if (i + 1 == argc) die("a value is missing after", argv[i]);
    const char *value = argv[++i];
    switch (letter) {
      case 'b': o.min_bytes = parse_size(value, "invalid size specified for 'minbytes'"); break;
      case 'e': o.max_bytes = parse_size(value, "invalid size specified for 'maxbytes'"); break;
      case 'i': o.step_bytes = parse_size(value, "invalid size specified for 'stepbytes'"); break;
      case 'f': o.factor = parse_number(value, 2, 1 << 20, "invalid factor"); break;
      case 'n': o.iterations = parse_number(value, 1, 1000000, "invalid number of iterations"); break;
      case 'w': o.warmup = parse_number(value, 0, 1000000, "invalid number of warm-up iterations"); break;
      case 'c': o.check = parse_number(value, 0, 1000000, "invalid value for 'check'"); break;
      default: parse_number(value, 1, 1, "only 1 is possible for -t and -g, there is no GPU:"); break;
    }
  }
  if (o.max_bytes < o.min_bytes) die("the largest size is below the smallest", "-e");
  if (o.max_bytes > ((size_t)INT32_MAX) * sizeof(float)) die("the largest size is above 8 GB, MPI's limit of one call", "-e");
  if (o.factor == 1 && o.step_bytes < sizeof(float)) die("the step is below one element", "-i");
  return o;
}

/* What rank r contributes to element i. Small integers: their sum is exact in float, whatever the order of the additions. */
static float contribution(int r, size_t i) { return (float)((i + (size_t)r * 7) % 61); }

static void fill(float *buffer, size_t count) {
  for (size_t i = 0; i < count; i++) buffer[i] = contribution(rank, i);
}

/* Wrong elements of this rank; the sums repeat with a period of 61, so each is computed once. */
static long count_wrong(const float *buffer, size_t count) {
  float expected[61];
  for (size_t i = 0; i < 61; i++) {
    expected[i] = 0;
    for (int r = 0; r < ranks; r++) expected[i] += contribution(r, i);
  }
  long wrong = 0;
  for (size_t i = 0; i < count; i++) wrong += buffer[i] != expected[i % 61];
  return wrong;
}

static void reduce(float *send, float *receive, size_t count, int in_place) {
  MPI_Allreduce(in_place ? MPI_IN_PLACE : send, receive, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static struct result measure(const struct options *o, float *send, float *receive, size_t count, int in_place) {
  struct result result = {0, -1};
  fill(send, count);
  fill(receive, count);
  for (long i = 0; i < o->warmup; i++) reduce(send, receive, count, in_place);
  /* In place, sums of sums would overflow: time on zeros, as large and as costly; correctness is checked apart. */
  if (in_place) memset(receive, 0, count * sizeof(float));
  MPI_Barrier(MPI_COMM_WORLD);
  double start = MPI_Wtime();
  for (long i = 0; i < o->iterations; i++) reduce(send, receive, count, in_place);
  double mine = (MPI_Wtime() - start) / (double)o->iterations, sum = 0;
  MPI_Allreduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  result.seconds = sum / ranks;
  if (o->check == 0) return result;
  long wrong = 0, total = 0;
  for (long i = 0; i < o->check; i++) {
    fill(send, count);
    if (in_place) fill(receive, count);
    else memset(receive, 0xff, count * sizeof(float)); /* not a number: an element that stays unwritten shows */
    reduce(send, receive, count, in_place);
    wrong += count_wrong(receive, count);
  }
  MPI_Allreduce(&wrong, &total, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
  result.wrong = total;
  return result;
}

static void print_header(const struct options *o, const char *program) {
  printf("# all_reduce_cpu version %s: lambdactl's CPU benchmark over MPI, in the layout of nccl-tests; no GPU takes part\n",
         VERSION);
  printf("# Collective test starting: %s\n", program);
  printf("# nThread 1 nGpus 0 minBytes %zu maxBytes %zu step: %ld(%s) warmup iters: %ld iters: %ld agg iters: 1 "
         "validation: %ld graph: 0\n#\n",
         o->min_bytes, o->max_bytes, o->factor > 1 ? o->factor : (long)o->step_bytes, o->factor > 1 ? "factor" : "bytes",
         o->warmup, o->iterations, o->check);
  printf("# Using devices\n");
}

/* One line a rank; the host's name is cut at the first dot, as nccl-tests does. */
static void print_ranks(void) {
  char mine[160] = {0}, host[65] = {0};
  gethostname(host, sizeof host - 1);
  host[strcspn(host, ".")] = '\0';
  snprintf(mine, sizeof mine, "#  Rank %2d Group  0 Pid %6d on %10s device  0 [cpu] CPU\n", rank, (int)getpid(), host);
  char *all = rank == 0 ? malloc(sizeof mine * (size_t)ranks) : NULL;
  MPI_Gather(mine, sizeof mine, MPI_CHAR, all, sizeof mine, MPI_CHAR, 0, MPI_COMM_WORLD);
  for (int r = 0; rank == 0 && r < ranks; r++) fputs(all + (size_t)r * sizeof mine, stdout);
  free(all);
}

static void print_headings(void) {
  printf("#\n# %10s  %12s  %8s  %6s  %6s  %33s%31s\n", "", "", "", "", "", "out-of-place", "in-place");
  const char *half = "    time   algbw   busbw  #wrong ", *units = "    (us)  (GB/s)  (GB/s)         ";
  printf("# %10s  %12s  %8s  %6s  %6s %s%s\n", "size", "count", "type", "redop", "root", half, half);
  printf("# %10s  %12s  %8s  %6s  %6s %s%s\n", "(B)", "(elements)", "", "", "", units, units);
}

/* Prints one half of a row and gives its bus bandwidth in GB/s. */
static double print_half(struct result result, size_t bytes) {
  double algbw = (double)bytes / 1e9 / result.seconds, busbw = algbw * 2 * (ranks - 1) / ranks;
  printf(" %8.2f %7.2f %7.2f ", result.seconds * 1e6, algbw, busbw);
  if (result.wrong < 0) printf("%7s", "N/A");
  else printf("%7ld", result.wrong);
  return busbw;
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  struct options o = parse(argc, argv);
  size_t largest = o.max_bytes / sizeof(float);
  float *send = malloc((largest + 1) * sizeof(float)), *receive = malloc((largest + 1) * sizeof(float));
  if (send == NULL || receive == NULL) {
    fprintf(stderr, "all_reduce_cpu: rank %d has no memory for two buffers of %zu bytes; use a smaller -e\n", rank, o.max_bytes);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  if (rank == 0) print_header(&o, "all_reduce_cpu");
  print_ranks();
  if (rank == 0) print_headings();
  double busbw = 0;
  long wrong = 0, cells = 0;
  for (size_t bytes = o.min_bytes; bytes <= o.max_bytes; bytes = o.factor > 1 ? bytes * (size_t)o.factor : bytes + o.step_bytes) {
    size_t count = bytes / sizeof(float);
    if (count == 0 && bytes == 0 && o.factor > 1) break;
    struct result out = measure(&o, send, receive, count, 0), in = measure(&o, send, receive, count, 1);
    wrong += (out.wrong > 0 ? out.wrong : 0) + (in.wrong > 0 ? in.wrong : 0);
    if (rank != 0) continue;
    printf("%12zu  %12zu  %8s  %6s  %6d", count * sizeof(float), count, "float", "sum", -1);
    busbw += print_half(out, count * sizeof(float));
    busbw += print_half(in, count * sizeof(float));
    printf("\n");
    fflush(stdout);
    cells += 2;
  }
  if (rank == 0) {
    printf("# Out of bounds values : %ld %s\n", wrong, wrong ? "FAILED" : "OK");
    printf("# Avg bus bandwidth    : %g \n#\n# Collective test concluded: all_reduce_cpu\n", cells ? busbw / (double)cells : 0.0);
  }
  free(send);
  free(receive);
  MPI_Finalize();
  return wrong ? 7 : 0;
}

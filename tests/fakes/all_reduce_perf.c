/* A fake of nccl-tests' all_reduce_perf for nodes without GPUs: real MPI ranks, invented bandwidth, nccl-tests' layout.
 *
 * Every rank reads /etc/fake-all-reduce-perf.conf of its own node, lines "NAME FACTOR": network (between nodes), nvlink
 * (within the node), rail0 ... rail7 (one GPU a node, by CUDA_VISIBLE_DEVICES). The slowest rank's factor holds for all, as
 * it does for a real all-reduce. The numbers are those of 8 x B200 nodes with 8 x 400 Gb/s. Build it with mpicc.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int rank, ranks;

static double factor_of(const char *wanted) {
  FILE *file = fopen("/etc/fake-all-reduce-perf.conf", "r");
  char name[32];
  double value, found = 1.0;
  while (file != NULL && fscanf(file, "%31s %lf", name, &value) == 2)
    if (strcmp(name, wanted) == 0) found = value;
  if (file != NULL) fclose(file);
  return found;
}

static size_t size_of(const char *text) {
  char *end;
  double value = strtod(text, &end);
  switch (*end) {
    case 'G': value *= 1024; /* fall through */
    case 'M': value *= 1024; /* fall through */
    case 'K': value *= 1024; break;
    default: break;
  }
  return (size_t)value;
}

/* Prints the list of ranks as nccl-tests does and gives the number of hosts. */
static int hosts_of(void) {
  char mine[64] = {0}, *all = calloc((size_t)ranks, sizeof mine);
  gethostname(mine, sizeof mine - 1);
  mine[strcspn(mine, ".")] = '\0';
  MPI_Allgather(mine, sizeof mine, MPI_CHAR, all, sizeof mine, MPI_CHAR, MPI_COMM_WORLD);
  int hosts = 0, device = 0;
  for (int r = 0; r < ranks; r++) {
    const char *host = all + (size_t)r * sizeof mine;
    device = r > 0 && strcmp(host, host - sizeof mine) == 0 ? device + 1 : 0;
    hosts += device == 0;
    if (rank == 0)
      printf("#  Rank %2d Group  0 Pid %6d on %10s device %2d [0000:%02x:00] NVIDIA B200\n", r, 1000 + r, host, device, 16 + device);
  }
  free(all);
  return hosts;
}

static double peak_of(int hosts) {
  const char *algorithm = getenv("NCCL_ALGO"), *device = getenv("CUDA_VISIBLE_DEVICES");
  char rail[16];
  double mine, slowest;
  if (hosts == 1) mine = 840 * factor_of("nvlink");
  else if (ranks == hosts) {
    snprintf(rail, sizeof rail, "rail%d", atoi(device != NULL ? device : "0"));
    mine = 48.5 * factor_of(rail) * factor_of("network");
  } else if (algorithm != NULL && strcmp(algorithm, "Ring") == 0) mine = 388 * factor_of("network");
  else mine = 0.94 * 50 * (ranks - 1) / (hosts - 1) * factor_of("network");
  MPI_Allreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD);
  return slowest;
}

int main(int argc, char **argv) {
  size_t from = 32 << 20, to = 32 << 20, step = 2;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "-b") == 0) from = size_of(argv[i + 1]);
    if (strcmp(argv[i], "-e") == 0) to = size_of(argv[i + 1]);
    if (strcmp(argv[i], "-f") == 0) step = (size_t)atol(argv[i + 1]);
  }
  if (step < 2) step = 2;
  if (rank == 0)
    printf("# nccl-tests version 2.17.6 nccl-headers=22602 nccl-library=22602\n# Collective test starting: all_reduce_perf\n"
           "# nThread 1 nGpus 1 minBytes %zu maxBytes %zu step: %zu(factor) warmup iters: 1 iters: 20 agg iters: 1 "
           "validation: 1 graph: 0\n#\n# Using devices\n", from, to, step);
  double peak = peak_of(hosts_of()), sum = 0, cells = 0, share = ranks > 1 ? 2.0 * (ranks - 1) / ranks : 1.0;
  if (rank == 0)
    printf("#\n#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong\n"
           "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)\n");
  for (size_t size = from; size <= to && size > 0 && rank == 0; size *= step) {
    printf("%12zu  %12zu     float     sum      -1", size, size / 4);
    for (int half = 0; half < 2; half++) {
      double time = 35 + (double)half * 0.4 + (double)size * share / peak / 1e3, algbw = (double)size / time / 1e3;
      printf(" %8.2f %7.2f %7.2f       0", time, algbw, algbw * share);
      sum += algbw * share;
      cells++;
    }
    printf("\n");
  }
  if (rank == 0)
    printf("# Out of bounds values : 0 OK\n# Avg bus bandwidth    : %g \n#\n# Collective test concluded: all_reduce_perf\n",
           cells > 0 ? sum / cells : 0.0);
  MPI_Finalize();
  return 0;
}

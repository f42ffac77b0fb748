/*
 * httpload: closed-loop load client for request and response: each connection asks again as soon as it has its answer.
 *
 *   gcc -O2 -Wall -Wextra -o httpload httpload.c
 *   httpload -p PORT -u PATH [-a ADDR] [-c CONNS] [-d SECS] [-n REQUESTS] [-g GROUPS] [-r RANGE] [-h HEADER]... [-E] [-s SEED]
 *
 *     -c CONNS    connections, each with one request at a time (default 16)
 *     -d SECS     ask for this long (default 5)
 *     -n REQUESTS stop after so many answers (default: -d alone ends the run)
 *     -u PATH     request target; "{i}" in it becomes the connection's index modulo -g (default: the number of connections),
 *                 "{r}" a random number from 1 to -r
 *     -E          each connection sends the ETag of its last answer as If-None-Match
 *     -h "K: V"   extra request header; may be repeated
 *
 * Keep-alive HTTP/1.1; answers with a Content-Length, chunked, or without a body (204, 304). A server that closes a connection
 * after an answer is connected to anew, which counts as a part of the next request (a synchronous worker of gunicorn does so).
 * Output: one JSON object on stdout: answers by class, answers/s, times in ms, bytes, CPU seconds of this process.
 * Exit status: 0 if every answer was 2xx or 304.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { IN_SIZE = 1 << 20 };
struct conn { int fd, have, busy; int64_t sent; char *in; char etag[256]; };

static struct sockaddr_in addr;
static const char *path;
static char extra[8192];
static int nconns = 16, groups, etags, ep;
static long range_ = 1;
static uint64_t rng = 88172645463325252ull;
static struct conn *conns;
static uint64_t answers, refused, broken, notmod, bytes, reconnects;
static float *times; static uint64_t room;

static int64_t mono(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
static int cmp(const void *a, const void *b) { float x = *(const float *)a, y = *(const float *)b; return (x > y) - (x < y); }
static uint64_t next_random(void) { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return rng; }

static void dial(struct conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&addr, sizeof addr)) { perror("connect"); exit(2); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
    c->have = 0;
}

static void ask(struct conn *c) {
    char req[16384], target[4096]; int t = 0, i = (int)(c - conns) % groups;
    for (const char *p = path; *p && t < (int)sizeof target - 32; )
        if (!strncmp(p, "{i}", 3)) { t += sprintf(target + t, "%d", i); p += 3; }
        else if (!strncmp(p, "{r}", 3)) { t += sprintf(target + t, "%ld", (long)(next_random() % (uint64_t)range_) + 1); p += 3; }
        else target[t++] = *p++;
    target[t] = 0;
    int n = snprintf(req, sizeof req, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nAccept: */*\r\n%s", target, inet_ntoa(addr.sin_addr), ntohs(addr.sin_port), extra);
    if (etags && c->etag[0]) n += snprintf(req + n, sizeof req - (size_t)n, "If-None-Match: %s\r\n", c->etag);
    n += snprintf(req + n, sizeof req - (size_t)n, "\r\n");
    if (send(c->fd, req, (size_t)n, MSG_NOSIGNAL) != n) { perror("send"); exit(2); }
    c->busy = 1;
}

/* Bytes of the whole answer that is in c->in, 0 if more is to come; sets whether the server closes afterwards. */
static int whole(struct conn *c, int *closes, int eof) {
    c->in[c->have] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    int head = (int)(end + 4 - c->in), status = atoi(c->in + 9);
    *end = 0;
    const char *length = strcasestr(c->in, "\r\nContent-Length:"), *coding = strcasestr(c->in, "\r\nTransfer-Encoding: chunked");
    const char *etag = strcasestr(c->in, "\r\nETag:"), *connection = strcasestr(c->in, "\r\nConnection: close");
    *closes = connection != NULL;
    if (etag) {
        etag += 7; while (*etag == ' ') etag++;
        size_t n = strcspn(etag, "\r"); if (n >= sizeof c->etag) n = 0;
        memcpy(c->etag, etag, n); c->etag[n] = 0;
    }
    int size = 0;
    if (status == 204 || status == 304) size = head;
    else if (length) size = head + atoi(length + 17);
    else if (coding) {
        char *p = end + 4;                              /* chunks: [size CRLF data CRLF]... 0 CRLF CRLF */
        for (;;) {
            char *line = memmem(p, (size_t)(c->in + c->have - p), "\r\n", 2);
            if (!line) break;
            long chunk = strtol(p, NULL, 16);
            char *after = line + 2 + chunk + 2;
            if (after > c->in + c->have) break;
            if (chunk == 0) { size = (int)(after - c->in); break; }
            p = after;
        }
    } else if (eof) { size = c->have; *closes = 1; }
    *end = '\r';
    return size && size <= c->have ? size : 0;
}

int main(int argc, char **argv) {
    double secs = 5; uint64_t limit = 0; int o;
    addr.sin_family = AF_INET; addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    while ((o = getopt(argc, argv, "a:p:u:c:d:n:g:r:h:s:E")) != -1) switch (o) {
    case 'a': if (inet_pton(AF_INET, optarg, &addr.sin_addr) != 1) return 1; break;
    case 'p': addr.sin_port = htons((uint16_t)atoi(optarg)); break;
    case 'u': path = optarg; break;
    case 'c': nconns = atoi(optarg); break;
    case 'd': secs = atof(optarg); break;
    case 'n': limit = strtoull(optarg, NULL, 10); break;
    case 'g': groups = atoi(optarg); break;
    case 'r': range_ = atol(optarg); break;
    case 's': rng ^= strtoull(optarg, NULL, 10) * 0x9E3779B97F4A7C15ull; break;
    case 'E': etags = 1; break;
    case 'h': if (strlen(extra) + strlen(optarg) + 3 > sizeof extra) return 1; strcat(extra, optarg); strcat(extra, "\r\n"); break;
    default: fprintf(stderr, "see the head of httpload.c\n"); return 1;
    }
    if (!path || !addr.sin_port || nconns < 1 || range_ < 1) { fprintf(stderr, "see the head of httpload.c\n"); return 1; }
    if (groups < 1) groups = nconns;
    signal(SIGPIPE, SIG_IGN);
    conns = calloc((size_t)nconns, sizeof *conns);
    ep = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < nconns; i++) { conns[i].in = malloc(IN_SIZE + 1); dial(&conns[i]); }
    int64_t start = mono(), last = start, stop = start + (int64_t)(secs * 1e9);
    for (int i = 0; i < nconns; i++) { conns[i].sent = mono(); ask(&conns[i]); }
    int inflight = nconns;
    struct epoll_event evs[256];
    while (inflight) {
        int n = epoll_wait(ep, evs, 256, 1000);
        if (mono() > stop + 30000000000LL) { broken += (uint64_t)inflight; break; }     /* nothing comes any more */
        for (int k = 0; k < n; k++) {
            struct conn *c = evs[k].data.ptr; int closes = 0;
            if (c->have >= IN_SIZE) { fprintf(stderr, "answer too large\n"); return 2; }
            ssize_t r = recv(c->fd, c->in + c->have, (size_t)(IN_SIZE - c->have), MSG_DONTWAIT);
            if (r < 0) { if (errno == EAGAIN || errno == EINTR) continue; r = 0; }
            c->have += (int)r; bytes += (uint64_t)r;
            int size = c->busy ? whole(c, &closes, r == 0) : 0;
            if (r == 0 && !size) {                      /* closed: while idle between two requests, or amidst an answer */
                close(c->fd);
                if (c->busy) { broken++; c->busy = 0; inflight--; }
                c->fd = -1;
                continue;
            }
            if (!size) continue;
            int64_t now = mono(); int status = atoi(c->in + 9);
            answers++; if (status == 304) notmod++; else if (status < 200 || status > 299) refused++;
            if (answers > room) { room = room ? room * 2 : 65536; times = realloc(times, room * sizeof *times); }
            times[answers - 1] = (float)((double)(now - c->sent) / 1e6);
            last = now; c->have = 0; c->busy = 0; inflight--;
            if (now >= stop || (limit && answers + (uint64_t)inflight >= limit)) continue;
            c->sent = mono();
            if (closes || r == 0) { close(c->fd); dial(c); reconnects++; }
            ask(c); inflight++;
        }
    }
    struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    double cpu = (double)((ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) * 1000000LL + ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
    double span = (double)(last - start) / 1e9, sum = 0;
    for (uint64_t i = 0; i < answers; i++) sum += times[i];
    qsort(times, answers, sizeof *times, cmp);
#define AT(p) (answers ? (double)times[(uint64_t)((double)(answers - 1) * (p))] : 0)
    printf("{\"answers\":%llu,\"refused\":%llu,\"broken\":%llu,\"not_modified\":%llu,\"reconnects\":%llu,\"seconds\":%.4f,\"per_s\":%.1f,"
           "\"ms_mean\":%.3f,\"ms_p50\":%.3f,\"ms_p99\":%.3f,\"ms_max\":%.3f,\"bytes\":%llu,\"client_cpu_s\":%.3f}\n",
           (unsigned long long)answers, (unsigned long long)refused, (unsigned long long)broken, (unsigned long long)notmod,
           (unsigned long long)reconnects, span, span > 0 ? (double)answers / span : 0, answers ? sum / (double)answers : 0, AT(.5), AT(.99), AT(1.),
           (unsigned long long)bytes, cpu);
    return refused || broken ? 2 : 0;
}

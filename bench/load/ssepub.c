/*
 * ssepub: publisher for the fan-out measurements. POSTs small JSON messages over keep-alive HTTP/1.1 connections.
 *
 *   gcc -O2 -Wall -Wextra -o ssepub ssepub.c
 *   ssepub -p PORT -u PATH [-a ADDR] [-g GROUPS] [-h HEADER]... [-m MESSAGES] [-s BYTES] [-r PER_SECOND] [-c CONNS]
 *          [-b PER_POST] [-J] [-I NAMES] [-d MAX_SECS] [-S FIRST_SEQ] [-M | -T]
 *
 * Message: {"seq":N,"t":NS,"role":"assistant","pad":"xxx..."} padded to -s bytes (default 200). NS is CLOCK_MONOTONIC:
 * with -r the time at which the message was due (so a publisher that the server holds up counts as latency), else the
 * time at which it was sent. Without -r each connection posts again as soon as it has its response (as fast as the peer
 * accepts). "{i}" in PATH becomes the connection's index modulo -g (default: the number of connections), or with -I A,B,C
 * the one of these names at that place.
 * With -b K each POST carries K messages: one a line (application/x-ndjson), or with -J as a JSON array. With -r they are
 * all due when the first of them is: they are what became ready together.
 * With -M the message is one that Swarm takes: {"role":"user","metadata":{"seq":N,"t":NS},"content":"xxx..."} (sseload
 * finds both fields there too).
 * With -T it is a token of a streamed message of Swarm: {"offset":N,"text":"{\"t\":NS}xxx"}, one connection a message, in turn.
 * The time stands in a JSON text, so that sseload finds it in the event as the field t\ (with the backslash).
 * A connection that the server closes while nothing is asked of it is no error.
 * Output: JSON with the accepted messages/s, the posts' response times and the CPU seconds of this process.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { IN_SIZE = 1 << 20 };
struct conn { int fd, busy, have; int64_t sent; char *in; };
static int64_t mono(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
static int cmp(const void *a, const void *b) { int64_t x = *(const int64_t *)a, y = *(const int64_t *)b; return x < y ? -1 : x > y; }

int main(int argc, char **argv) {
    struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const char *path = NULL; int o, m = 100, size = 200, nc = 1, per = 1, groups = 0, array = 0, swarm = 0, tokens = 0, nnames = 0; char *names[4096], extra[4096] = ""; double rate = 0, maxs = 60; int64_t seq0 = 1;
    while ((o = getopt(argc, argv, "a:p:u:g:h:m:s:r:c:b:d:S:I:JMT")) != -1) switch (o) {
    case 'a': if (inet_pton(AF_INET, optarg, &addr.sin_addr) != 1) return 1; break;
    case 'p': addr.sin_port = htons((uint16_t)atoi(optarg)); break;
    case 'u': path = optarg; break;
    case 'm': m = atoi(optarg); break;
    case 's': size = atoi(optarg); break;
    case 'r': rate = atof(optarg); break;
    case 'c': nc = atoi(optarg); break;
    case 'b': per = atoi(optarg); break;
    case 'd': maxs = atof(optarg); break;
    case 'g': groups = atoi(optarg); break;
    case 'h': if (strlen(extra) + strlen(optarg) + 3 > sizeof extra) return 1; strcat(extra, optarg); strcat(extra, "\r\n"); break;
    case 'J': array = 1; break;
    case 'M': swarm = 1; break;
    case 'T': tokens = 1; break;
    case 'I': for (char *name = strtok(optarg, ","); name && nnames < 4096; name = strtok(NULL, ",")) names[nnames++] = name; break;
    case 'S': seq0 = atoll(optarg); break;
    default: return 1;
    }
    if (!path || nc < 1 || nc > 1024 || per < 1 || size < 100 || size > 65536) { fprintf(stderr, "see the head of ssepub.c\n"); return 1; }
    if (groups < 1) groups = nnames ? nnames : nc;
    long *offset = calloc((size_t)nc, sizeof *offset);
    signal(SIGPIPE, SIG_IGN);
    struct conn *cs = calloc((size_t)nc, sizeof *cs); struct pollfd *pf = calloc((size_t)nc, sizeof *pf);
    int64_t *rt = calloc((size_t)m + 1, sizeof *rt);
    char *bodybuf = malloc((size_t)per * (size_t)(size + 1) + 3), *req = malloc((size_t)per * (size_t)(size + 1) + 8192);
    for (int i = 0; i < nc; i++) {
        cs[i].in = malloc(IN_SIZE); cs[i].fd = socket(AF_INET, SOCK_STREAM, 0); int one = 1;
        if (connect(cs[i].fd, (struct sockaddr *)&addr, sizeof addr)) { perror("connect"); return 2; }
        setsockopt(cs[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        pf[i].fd = cs[i].fd; pf[i].events = POLLIN;
    }
    int sent = 0, acked = 0, posts = 0, errors = 0, inflight = 0, lost = 0; int64_t start = mono(), last = start, end = start + (int64_t)(maxs * 1e9); double late = 0;
    while ((sent < m || inflight) && lost < nc && mono() < end) {
        for (int i = 0; i < nc && sent < m; i++) if (!cs[i].busy && cs[i].fd >= 0) {
            int64_t now = mono(), due = rate > 0 ? start + (int64_t)((double)sent / rate * 1e9) : now;
            if (now < due) break;
            if (tokens && i != sent % nc) continue;
            if ((double)(now - due) > late) late = (double)(now - due);
            int bl = 0, k = 0;
            if (tokens) {
                int h = sprintf(bodybuf, "{\"offset\":%ld,\"text\":\"", offset[i]);
                int v = sprintf(bodybuf + h, "{\\\"t\\\":%lld}", (long long)due), pad = size - h - v - 2;
                if (pad < 0) pad = 0;
                memset(bodybuf + h + v, 'x', (size_t)pad); bl = h + v + pad; bodybuf[bl++] = '"'; bodybuf[bl++] = '}';
                offset[i] += v - 2 + pad; k = 1; sent++;       /* two backslashes are no part of the text */
            } else {
                if (array) bodybuf[bl++] = '[';
                for (k = 0; k < per && sent < m; k++, sent++) {
                    if (k) bodybuf[bl++] = array ? ',' : '\n';
                    int h = sprintf(bodybuf + bl, swarm ? "{\"role\":\"user\",\"metadata\":{\"seq\":%lld,\"t\":%lld},\"content\":\"" : "{\"seq\":%lld,\"t\":%lld,\"role\":\"assistant\",\"pad\":\"", (long long)(seq0 + sent), (long long)due);
                    int pad = size - h - 2; if (pad < 0) pad = 0;
                    memset(bodybuf + bl + h, 'x', (size_t)pad); bl += h + pad; bodybuf[bl++] = '"'; bodybuf[bl++] = '}';
                }
                if (array) bodybuf[bl++] = ']';
            }
            char target[2048]; const char *slot = strstr(path, "{i}");
            if (slot && nnames) snprintf(target, sizeof target, "%.*s%s%s", (int)(slot - path), path, names[i % groups % nnames], slot + 3);
            else if (slot) snprintf(target, sizeof target, "%.*s%d%s", (int)(slot - path), path, i % groups, slot + 3);
            else snprintf(target, sizeof target, "%s", path);
            int n = sprintf(req, "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n", target, extra, per > 1 && !array ? "application/x-ndjson" : "application/json", bl);
            memcpy(req + n, bodybuf, (size_t)bl); n += bl;
            for (int off = 0; off < n;) { ssize_t w = send(cs[i].fd, req + off, (size_t)(n - off), 0); if (w <= 0) { perror("send"); return 2; } off += (int)w; }
            cs[i].busy = k; cs[i].sent = now; cs[i].have = 0; inflight++; posts++;
        }
        int timeout = 50;
        if (rate > 0 && sent < m) {
            int64_t due = start + (int64_t)((double)sent / rate * 1e9) - mono();
            int idle = 0; for (int i = 0; i < nc; i++) idle |= !cs[i].busy;
            if (idle) { if (due <= 0) timeout = 0; else { struct timespec ts = { due / 1000000000, due % 1000000000 };
                if (ppoll(pf, (nfds_t)nc, &ts, NULL) < 0 && errno != EINTR) { perror("ppoll"); return 2; } timeout = 0; } }
        }
        poll(pf, (nfds_t)nc, timeout);
        for (int i = 0; i < nc; i++) if (pf[i].revents) {
            struct conn *c = &cs[i];
            ssize_t r = recv(c->fd, c->in + c->have, IN_SIZE - 1 - (size_t)c->have, MSG_DONTWAIT);
            if (r < 0 && errno == EAGAIN) continue;
            if (r <= 0) { lost++; if (c->busy) { errors++; inflight--; } close(c->fd); c->fd = -1; pf[i].fd = -1; continue; }
            c->have += (int)r; c->in[c->have] = 0;
            char *h = strstr(c->in, "\r\n\r\n"); if (!h) continue;
            char *cl = strcasestr(c->in, "Content-Length:"); long want = cl && cl < h ? atol(cl + 15) : 0;
            int chunked = !cl && strcasestr(c->in, "chunked") != NULL;
            if (chunked ? !strstr(h, "0\r\n\r\n") : c->in + c->have < h + 4 + want) continue;
            int st = atoi(c->in + 9); if (st < 200 || st > 299) errors++; else acked += c->busy;
            last = mono(); if (acked <= m) rt[posts - inflight] = last - c->sent;
            c->busy = 0; c->have = 0; inflight--;
        }
    }
    struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    int done = posts - inflight; qsort(rt, (size_t)(done > 0 ? done : 0), sizeof *rt, cmp);
    printf("{\"sent\":%d,\"accepted\":%d,\"errors\":%d,\"posts\":%d,\"seconds\":%.4f,\"messages_per_s\":%.1f,\"post_ms_p50\":%.3f,\"post_ms_p99\":%.3f,\"max_late_ms\":%.3f,\"client_cpu_s\":%.3f}\n",
        sent, acked, errors, posts, (double)(last - start) / 1e9, acked / ((double)(last - start) / 1e9 + 1e-9),
        done > 0 ? (double)rt[done / 2] / 1e6 : 0, done > 0 ? (double)rt[(int)(done * .99)] / 1e6 : 0, late / 1e6,
        (double)((ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) * 1000000LL + ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6);
    return errors || acked < m;
}

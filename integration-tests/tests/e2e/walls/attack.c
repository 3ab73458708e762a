/* Attacks that a step with CAP_NET_RAW can try. Linked statically and put into the build's context.
 *
 *   attack sniff SECONDS NEEDLE    reads all packets on every link of its namespace; prints `packets N` and
 *                                  `found` when one of them has the needle
 *   attack spoof SOURCE TO PORT    sends one UDP datagram `spoofed` with that source address
 *   attack say TO PORT             sends one UDP datagram `honest`
 *   attack listen PORT SECONDS     prints the UDP datagrams that come, a line each
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int sniff(int seconds, const char *needle) {
    static char packet[65536];
    int packets = 0, found = 0, s = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    if (s < 0) { perror("packet socket"); return 1; }
    time_t end = time(NULL) + seconds;
    while (time(NULL) < end) {
        struct pollfd one = { s, POLLIN, 0 };
        if (poll(&one, 1, 200) <= 0) continue;
        ssize_t length = recv(s, packet, sizeof packet, 0);
        if (length <= 0) continue;
        packets++;
        found |= memmem(packet, length, needle, strlen(needle)) != NULL;
    }
    printf("packets %d\n%s", packets, found ? "found\n" : "");
    return 0;
}

static int spoof(const char *source, const char *to, int port) {
    static const char text[] = "spoofed";
    char packet[sizeof(struct iphdr) + sizeof(struct udphdr) + sizeof text] = { 0 };
    struct iphdr *ip = (void *)packet;
    struct udphdr *udp = (void *)(packet + sizeof *ip);
    struct sockaddr_in peer = { .sin_family = AF_INET };
    int s = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (s < 0) { perror("raw socket"); return 1; }
    inet_pton(AF_INET, to, &peer.sin_addr);
    *ip = (struct iphdr){ .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP,
        .tot_len = htons(sizeof packet), .daddr = peer.sin_addr.s_addr };
    inet_pton(AF_INET, source, &ip->saddr);
    *udp = (struct udphdr){ .source = htons(4000), .dest = htons(port), .len = htons(sizeof *udp + sizeof text) };
    memcpy(packet + sizeof *ip + sizeof *udp, text, sizeof text);
    if (sendto(s, packet, sizeof packet, 0, (void *)&peer, sizeof peer) < 0) { perror("send"); return 0; }
    puts("sent");
    return 0;
}

static int say(const char *to, int port) {
    struct sockaddr_in peer = { .sin_family = AF_INET, .sin_port = htons(port) };
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    inet_pton(AF_INET, to, &peer.sin_addr);
    if (sendto(s, "honest", 7, 0, (void *)&peer, sizeof peer) < 0) { perror("send"); return 1; }
    return 0;
}

static int listens(int port, int seconds) {
    char text[64] = { 0 };
    struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(port) };
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(s, (void *)&own, sizeof own) < 0) { perror("bind"); return 1; }
    time_t end = time(NULL) + seconds;
    while (time(NULL) < end) {
        struct pollfd one = { s, POLLIN, 0 };
        if (poll(&one, 1, 200) > 0 && recv(s, text, sizeof text - 1, 0) > 0) puts(text);
    }
    return 0;
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "sniff")) return sniff(atoi(words[2]), words[3]);
    if (count == 5 && !strcmp(words[1], "spoof")) return spoof(words[2], words[3], atoi(words[4]));
    if (count == 4 && !strcmp(words[1], "say")) return say(words[2], atoi(words[3]));
    if (count == 4 && !strcmp(words[1], "listen")) return listens(atoi(words[2]), atoi(words[3]));
    return 2;
}

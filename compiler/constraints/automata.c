/* Automata over characters in compiled form: distances, products and canonical forms, as in minimise.py, char_algebra.py
   and char_dfa.py, which do the same without it. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;
typedef uint8_t u8;
typedef uint64_t u64;

#define FAILED (-3)

/* Per state the length of the shortest text to an accepting one (-1: none) and of the longest (-1: no bound, -2: none).
   Every state but the dead one, 0, leads to an accepting one or is given -1 and -2. */
void distances(i32 S, i32 C, const i32 *delta, const u8 *accept, i64 *shortest, i64 *longest) {
    i32 *first = calloc(S + 2, sizeof(i32)), *from = malloc(sizeof(i32) * ((i64)S * C + 1));
    i32 *todo = malloc(sizeof(i32) * (S + 1)), *degree = calloc(S + 1, sizeof(i32)), count = 0;
    for (i32 s = 0; s < S; s++) /* ways to the dead state count for nothing, and neighbours often lead to the same one */
        for (i32 c = 0, t, last = 0; c < C; c++, last = t)
            if ((t = delta[(i64)s * C + c]) && t != last) first[t + 2]++;
    for (i32 s = 0; s <= S; s++) first[s + 1] += first[s];
    for (i32 s = 0; s < S; s++)
        for (i32 c = 0, t, last = 0; c < C; c++, last = t)
            if ((t = delta[(i64)s * C + c]) && t != last) from[first[t + 1]++] = s;
    for (i32 s = 0; s < S; s++) {
        shortest[s] = accept[s] ? 0 : -1;
        if (accept[s]) todo[count++] = s;
    }
    for (i32 i = 0; i < count; i++)
        for (i32 s = todo[i], e = first[s]; e < first[s + 1]; e++)
            if (shortest[from[e]] < 0) shortest[from[e]] = shortest[s] + 1, todo[count++] = from[e];
    /* Longest: peel states whose live successors are all done, from the ends backwards. */
    for (i32 s = 0; s < S; s++) {
        longest[s] = shortest[s] < 0 ? -2 : -1;
        if (shortest[s] >= 0)
            for (i32 e = first[s]; e < first[s + 1]; e++) degree[from[e]]++;
    }
    count = 0;
    i64 *height = calloc(S + 1, sizeof(i64));
    for (i32 s = 0; s < S; s++)
        if (shortest[s] >= 0 && !degree[s]) todo[count++] = s;
    for (i32 i = 0; i < count; i++) {
        i32 s = todo[i];
        longest[s] = height[s];
        for (i32 e = first[s]; e < first[s + 1]; e++) {
            i32 p = from[e];
            if (height[s] + 1 > height[p]) height[p] = height[s] + 1;
            if (!--degree[p]) todo[count++] = p;
        }
    }
    free(first), free(from), free(todo), free(degree), free(height);
}

static u64 mixed(u64 h, u64 x) {
    h ^= x + 0x9E3779B97F4A7C15ull + (h << 6) + (h >> 2);
    return h * 0xBF58476D1CE4E5B9ull;
}

typedef struct { i64 count, room; i32 *a, *b, *delta; } Product; /* pairs of states, and their table */

static i64 pair_at(Product *p, i64 **table, i64 *size, i32 C, i32 a, i32 b) {
    for (u64 h = mixed(a, b);; h++) {
        i64 at = (*table)[h & (*size - 1)];
        if (at < 0) break;
        if (p->a[at] == a && p->b[at] == b) return at;
    }
    if (p->count == p->room) {
        p->room *= 2;
        p->a = realloc(p->a, sizeof(i32) * p->room), p->b = realloc(p->b, sizeof(i32) * p->room);
        p->delta = realloc(p->delta, sizeof(i32) * p->room * C);
    }
    p->a[p->count] = a, p->b[p->count] = b;
    if (2 * p->count++ > *size) { /* a larger table */
        *size *= 4;
        *table = realloc(*table, sizeof(i64) * *size);
        memset(*table, 0xFF, sizeof(i64) * *size);
        for (i64 i = 0; i < p->count - 1; i++) {
            u64 h = mixed(p->a[i], p->b[i]);
            while ((*table)[h & (*size - 1)] >= 0) h++;
            (*table)[h & (*size - 1)] = i;
        }
    }
    u64 h = mixed(a, b);
    while ((*table)[h & (*size - 1)] >= 0) h++;
    (*table)[h & (*size - 1)] = p->count - 1;
    return p->count - 1;
}

void product_free(Product *p) { free(p->a), free(p->b), free(p->delta), free(p); }

/* The reachable pairs of two tables over the same classes; pair 0 is dead, 1 the start. NULL: more than `limit`. */
Product *product_new(i32 C, const i32 *delta_a, const i32 *delta_b, i32 start_a, i32 start_b, int need_a, int need_b, i64 limit) {
    Product *p = malloc(sizeof *p);
    *p = (Product){0, 64, malloc(sizeof(i32) * 64), malloc(sizeof(i32) * 64), malloc(sizeof(i32) * 64 * C)};
    i64 size = 256, *table = malloc(sizeof(i64) * size);
    memset(table, 0xFF, sizeof(i64) * size);
    pair_at(p, &table, &size, C, 0, 0);
    memset(p->delta, 0, sizeof(i32) * C);
    int dead = (need_a && !start_a) || (need_b && !start_b) || (!start_a && !start_b);
    if (!dead) pair_at(p, &table, &size, C, start_a, start_b);
    for (i64 i = 1; i < p->count && p->count <= limit; i++)
        for (i32 c = 0; c < C; c++) {
            i32 a = delta_a[(i64)p->a[i] * C + c], b = delta_b[(i64)p->b[i] * C + c];
            if ((need_a && !a) || (need_b && !b)) a = b = 0;
            i64 target = pair_at(p, &table, &size, C, a, b);
            p->delta[i * C + c] = (i32)target;
        }
    free(table);
    if (p->count <= limit) return p;
    product_free(p);
    return 0;
}

i64 product_count(const Product *p) { return p->count; }

void product_read(const Product *p, i32 C, i32 *a, i32 *b, i32 *delta) {
    memcpy(a, p->a, sizeof(i32) * p->count), memcpy(b, p->b, sizeof(i32) * p->count);
    memcpy(delta, p->delta, sizeof(i32) * p->count * C);
}

/* Number equal keys alike: key i is `width` numbers at keys + i * width. Returns how many there are. */
static i32 number_keys(i64 n, i32 width, const i32 *keys, i32 *out) {
    i64 size = 64;
    while (size < 2 * n) size *= 2;
    i64 *table = malloc(sizeof(i64) * size);
    memset(table, 0xFF, sizeof(i64) * size);
    i32 count = 0;
    for (i64 i = 0; i < n; i++) {
        u64 h = 0;
        for (i32 k = 0; k < width; k++) h = mixed(h, (u64)(uint32_t)keys[i * width + k]);
        for (h ^= h >> 29;; h++) {
            i64 at = table[h & (size - 1)];
            if (at >= 0 && memcmp(keys + at * width, keys + i * width, sizeof(i32) * width)) continue;
            if (at < 0) table[h & (size - 1)] = i, out[i] = count++;
            else out[i] = out[at];
            break;
        }
    }
    free(table);
    return count;
}

/* Blocks of the states from which texts cannot be made longer without end, from the ends backwards: where a state goes is
   numbered before it, so that one pass is enough. Block 0 is what leads nowhere. Returns how many there are. */
static i32 number_finite(i32 n, i32 C, const i32 *live, const i32 *delta, const i32 *labels, const i64 *longest, i32 *block) {
    i32 count = 0, top = 0, finite = 0;
    for (i32 i = 0; i < n; i++)
        if (longest[live[i]] >= 0) finite++, top = longest[live[i]] > top ? (i32)longest[live[i]] : top;
    if (!finite) return 0;
    i32 *begin = calloc(top + 2, sizeof(i32)), *order = malloc(sizeof(i32) * finite), *key = malloc(sizeof(i32) * (C + 1));
    i32 *keys = malloc(sizeof(i32) * (i64)finite * (C + 1));
    for (i32 i = 0; i < n; i++)
        if (longest[live[i]] >= 0) begin[longest[live[i]] + 1]++;
    for (i32 h = 0; h <= top; h++) begin[h + 1] += begin[h];
    for (i32 i = 0; i < n; i++)
        if (longest[live[i]] >= 0) order[begin[longest[live[i]]]++] = live[i];
    i64 size = 64;
    while (size < 2 * (i64)finite) size *= 2;
    i32 *table = calloc(size, sizeof(i32));
    for (i32 i = 0; i < finite; i++) {
        const i32 *row = delta + (i64)order[i] * C;
        u64 h = mixed(0, (u64)(uint32_t)(key[C] = labels[order[i]]));
        for (i32 c = 0; c < C; c++) h = mixed(h, (u64)(uint32_t)(key[c] = block[row[c]]));
        for (h ^= h >> 29;; h++) {
            i32 at = table[h & (size - 1)];
            if (at && memcmp(keys + (i64)(at - 1) * (C + 1), key, sizeof(i32) * (C + 1))) continue;
            if (!at) {
                memcpy(keys + (i64)count * (C + 1), key, sizeof(i32) * (C + 1));
                at = table[h & (size - 1)] = ++count;
            }
            block[order[i]] = at;
            break;
        }
    }
    free(begin), free(order), free(key), free(keys), free(table);
    return count;
}

/* The other states' blocks, numbered behind the `finite` ones: by label and distance, which belong to a state's language,
   then split by where states go until nothing changes. Returns how many blocks there are in all. */
static i32 refine(i32 n, i32 C, const i32 *live, const i32 *delta, const i32 *labels, const i64 *shortest, const i64 *longest,
                  i32 *block, i32 finite, i64 limit, i64 *steps) {
    i32 width = C + 1 < 2 ? 2 : C + 1, *others = malloc(sizeof(i32) * (n + 1)), m = 0, count, before = 0;
    for (i32 i = 0; i < n; i++)
        if (longest[live[i]] < 0) others[m++] = live[i];
    i32 *keys = malloc(sizeof(i32) * ((i64)m * width + 1)), *next = malloc(sizeof(i32) * (m + 1));
    for (i32 i = 0; i < m; i++) keys[2 * (i64)i] = labels[others[i]], keys[2 * (i64)i + 1] = (i32)shortest[others[i]];
    count = number_keys(m, 2, keys, next);
    for (i32 i = 0; i < m; i++) block[others[i]] = finite + next[i] + 1;
    while (count != before && count < m && (*steps += (i64)m * C) <= limit) {
        for (i32 i = 0; i < m; i++) {
            i32 *key = keys + (i64)i * (C + 1);
            key[C] = block[others[i]];
            for (i32 c = 0; c < C; c++) key[c] = block[delta[(i64)others[i] * C + c]];
        }
        before = count;
        count = number_keys(m, C + 1, keys, next);
        for (i32 i = 0; i < m; i++) block[others[i]] = finite + next[i] + 1;
    }
    free(others), free(keys), free(next);
    return finite + count;
}

/* The minimal automaton, its classes merged, all numbered in order of first use. `order`: classes in the order of their
   characters. Writes the table [states, classes], labels, and the new class of each old one; returns the number of
   states, the classes in *num_classes; FAILED: it would take more than `limit` steps. */
i32 canonical(i32 S, i32 C, const i32 *delta, const i32 *labels, i32 start, i32 num_order, const i32 *order, i64 limit,
              i32 *out_delta, i32 *out_labels, i32 *new_class, i32 *num_classes) {
    i32 *live = malloc(sizeof(i32) * S), *block = calloc(S, sizeof(i32)), n = 0;
    i64 *shortest = malloc(sizeof(i64) * S), *longest = malloc(sizeof(i64) * S);
    u8 *accept = malloc(S), *seen = calloc(S, 1);
    for (i32 s = 0; s < S; s++) accept[s] = s && labels[s];
    distances(S, C, delta, accept, shortest, longest);
    if (start && shortest[start] >= 0) live[n++] = start, seen[start] = 1;
    for (i32 i = 0; i < n; i++)
        for (i32 c = 0; c < C; c++) {
            i32 t = delta[(i64)live[i] * C + c];
            if (!seen[t] && shortest[t] >= 0) seen[t] = 1, live[n++] = t;
        }
    i64 steps = 0;
    i32 count = number_finite(n, C, live, delta, labels, longest, block);
    count = refine(n, C, live, delta, labels, shortest, longest, block, count, limit, &steps);
    i32 *first = malloc(sizeof(i32) * (count + 2)), states = FAILED;
    if (steps > limit) goto done;
    for (i32 i = n - 1; i >= 0; i--) first[block[live[i]]] = live[i];
    /* Classes with equal columns are one; the dead column is class 0. */
    i32 *columns = calloc((i64)(num_order + 1) * (count + 1), sizeof(i32)), *number = malloc(sizeof(i32) * (num_order + 1));
    for (i32 b = 1; b <= count; b++)
        for (i32 k = 0; k < num_order; k++)
            columns[(i64)(k + 1) * (count + 1) + b] = block[delta[(i64)first[b] * C + order[k]]];
    i32 width_out = number_keys(num_order + 1, count + 1, columns, number); /* column 0 is the dead one, so number 0 */
    i32 *source = malloc(sizeof(i32) * (width_out + 1));
    for (i32 k = num_order; k >= 0; k--) source[number[k]] = k ? order[k - 1] : -1;
    memset(new_class, 0, sizeof(i32) * C);
    for (i32 k = 0; k < num_order; k++) new_class[order[k]] = number[k + 1];
    *num_classes = width_out;
    /* States in breadth-first order over the classes. */
    i32 *place = calloc(count + 1, sizeof(i32)), *queue = malloc(sizeof(i32) * (count + 2));
    states = 1;
    memset(out_delta, 0, sizeof(i32) * width_out), out_labels[0] = 0;
    if (n) queue[states] = block[start], place[block[start]] = states++;
    for (i32 i = 1; i < states; i++) {
        i32 s = first[queue[i]];
        out_labels[i] = labels[s];
        out_delta[(i64)i * width_out] = 0;
        for (i32 c = 1; c < width_out; c++) {
            i32 t = block[delta[(i64)s * C + source[c]]];
            if (t && !place[t]) queue[states] = t, place[t] = states++;
            out_delta[(i64)i * width_out + c] = place[t];
        }
    }
    free(columns), free(number), free(source), free(place), free(queue);
done:
    free(live), free(block), free(shortest), free(longest), free(accept), free(seen), free(first);
    return states;
}

static int by_value(const void *a, const void *b) { return *(const i32 *)a < *(const i32 *)b ? -1 : *(const i32 *)a > *(const i32 *)b; }

/* The minimal automaton of some texts, given as code points one after another, each text with a label (the first of equal
   ones counts). `width`: different characters, and one. Writes bounds, classes, table and labels into `out` one behind
   another, and how many states, classes and bounds there are into `sizes`; `out` holds 4 * width + (total + 2) * (width + 1)
   numbers. Returns FAILED where it would take more than `limit` steps. */
i32 texts_automaton(i32 num_texts, const i32 *lengths, const i32 *data, const i32 *of_text, i32 total, i32 width, i64 limit,
                    i32 *out, i32 *sizes) {
    i32 *alphabet = malloc(sizeof(i32) * (total + 1)), *labels = calloc(total + 2, sizeof(i32)), ascii[128] = {0};
    i32 *delta = calloc((i64)(total + 2) * width, sizeof(i32)), *order = malloc(sizeof(i32) * (width + 1)), count = 2, letters = 0;
    memcpy(alphabet, data, sizeof(i32) * total);
    qsort(alphabet, total, sizeof(i32), by_value);
    for (i32 i = 0; i < total; i++)
        if (!letters || alphabet[i] != alphabet[letters - 1]) alphabet[letters++] = alphabet[i];
    for (i32 i = 0; i < letters && alphabet[i] < 128; i++) ascii[alphabet[i]] = i + 1;
    for (i32 i = 0; i < num_texts; i++) {
        i32 state = 1;
        for (i32 k = 0; k < lengths[i]; k++) {
            i32 code = *data++, low = 0, high = letters - 1;
            while (code >= 128 && low < high) {
                i32 middle = (low + high) / 2;
                if (alphabet[middle] < code) low = middle + 1;
                else high = middle;
            }
            i32 *after = &delta[(i64)state * width + (code < 128 ? ascii[code] : low + 1)];
            if (!*after) *after = count++;
            state = *after;
        }
        if (!labels[state]) labels[state] = of_text[i];
    }
    /* Ranges: each character, and what lies between (class 0). `order`: the classes in the order in which they occur. */
    i32 *bounds = out, *classes = out + 2 * width, num = 0, dead = 0, at = 0, next = 0;
    for (i32 i = 0; i < letters; i++) {
        if (alphabet[i] > at) {
            bounds[num] = at, classes[num++] = 0;
            if (!dead++) order[next++] = 0;
        }
        bounds[num] = alphabet[i], classes[num++] = i + 1, order[next++] = i + 1, at = alphabet[i] + 1;
    }
    if (at <= 0x10FFFF) {
        bounds[num] = at, classes[num++] = 0;
        if (!dead) order[next++] = 0;
    }
    i32 *table = out + 4 * width, *new_class = malloc(sizeof(i32) * width), *made = calloc(total + 3, sizeof(i32)), num_classes;
    i32 states = canonical(count, width, delta, labels, num_texts ? 1 : 0, next, order, limit, table, made, new_class, &num_classes);
    if (states != FAILED) {
        i32 kept = 0;
        for (i32 i = 0; i < num; i++) {
            i32 class = new_class[classes[i]];
            if (!kept || class != classes[kept - 1]) bounds[kept] = bounds[i], classes[kept++] = class;
        }
        memcpy(table + (i64)states * num_classes, made, sizeof(i32) * states);
        sizes[0] = states, sizes[1] = num_classes, sizes[2] = kept;
    }
    free(alphabet), free(labels), free(delta), free(order), free(new_class), free(made);
    return states;
}

/* The tree over bytes of a partition from that of a finer one (speller.py): leaves get their new class, nodes that lead
   nowhere go, equal ones are one. Nodes come behind their children, but for the root, 0. Returns how many are left. */
i32 speller_from_pattern(i32 K, i32 C, const i32 *pattern, const i32 *new_class, i32 *table, u8 *reach) {
    i32 *place = malloc(sizeof(i32) * K), row[256], count = 1;
    u64 *hashes = malloc(sizeof(u64) * (K + 1));
    for (i32 turn = 1; turn <= K; turn++) {
        i32 k = turn % K, live = 0, at;
        u64 h = 0;
        for (int b = 0; b < 256; b++) {
            i32 e = pattern[(i64)k * 256 + b];
            row[b] = e < 0 ? ~new_class[~e] : place[e];
            live |= row[b] != -1;
            h = mixed(h, (u64)(uint32_t)row[b]);
        }
        if (k && !live) {
            place[k] = -1;
            continue;
        }
        for (at = 1; k && at < count; at++)
            if (hashes[at] == h && !memcmp(table + (i64)at * 256, row, sizeof row)) break;
        place[k] = at = k ? at : 0;
        if (k && at < count) continue;
        count += k != 0;
        hashes[at] = h;
        memcpy(table + (i64)at * 256, row, sizeof row);
        for (int b = 0; b < 256; b++) {
            if (row[b] < 0) reach[(i64)at * C + ~row[b]] |= row[b] != -1;
            else if (!b || row[b] != row[b - 1])
                for (i32 c = 1; c < C; c++) reach[(i64)at * C + c] |= reach[(i64)row[b] * C + c];
        }
    }
    free(place), free(hashes);
    return count;
}

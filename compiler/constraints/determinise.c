/* Automata over characters from sets of positions (char_dfa.py: from_nfa) and from many texts (char_algebra.py:
   from_texts), which Python does without it. Neither touches Python objects, so the interpreter goes on meanwhile. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;
typedef uint8_t u8;
typedef uint64_t u64;

enum { DONE, TOO_MANY_STATES, TOO_MUCH_WORK, OVER_LIMIT };

typedef struct { i32 states, columns; i32 *delta, *labels; } Table; /* state 0 is dead */

void table_free(Table *t) { free(t->delta), free(t->labels), free(t); }

i32 table_states(const Table *t) { return t->states; }

void table_read(const Table *t, i32 *delta, i32 *labels) {
    memcpy(delta, t->delta, sizeof(i32) * (i64)t->states * t->columns);
    memcpy(labels, t->labels, sizeof(i32) * t->states);
}

static u64 scattered(u64 x) {
    x = (x + 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

static void *grown(void *array, i64 *room, i64 needed, size_t size) {
    if (needed <= *room) return array;
    while (*room < needed) *room *= 2;
    return realloc(array, *room * size);
}

/* States that are sets of positions. A set is kept in the order in which it was found: equal ones have an equal sum of
   scattered members, and are compared by marks. */
typedef struct {
    i64 count, room, used, pool_room, size;
    i64 *begin, *table; /* where the members of each state begin in `pool`; places in a hash table */
    u64 *hashes;
    i32 *pool;
    u64 *mark, now; /* positions of the set at hand have mark[p] == now */
} Sets;

static i64 set_number(Sets *s, i64 begin) { /* of the set that lies in the pool from `begin` on */
    u64 h = 0;
    i64 length = s->used - begin;
    for (i64 i = begin; i < s->used; i++) h += scattered(s->pool[i]);
    for (u64 at = h ^ h >> 32;; at++) {
        i64 found = s->table[at & (s->size - 1)];
        if (found < 0) break;
        if (s->hashes[found] != h || s->begin[found + 1] - s->begin[found] != length) continue;
        i64 i = s->begin[found], end = s->begin[found + 1];
        while (i < end && s->mark[s->pool[i]] == s->now) i++;
        if (i < end) continue;
        s->used = begin;
        return found;
    }
    i64 room = s->room;
    s->begin = grown(s->begin, &room, s->count + 2, sizeof(i64));
    s->hashes = grown(s->hashes, &s->room, s->count + 2, sizeof(u64));
    s->begin[s->count] = begin, s->begin[s->count + 1] = s->used, s->hashes[s->count] = h;
    if (2 * ++s->count > s->size) {
        s->size *= 4;
        s->table = realloc(s->table, sizeof(i64) * s->size);
        memset(s->table, 0xFF, sizeof(i64) * s->size);
        for (i64 i = 0; i < s->count - 1; i++) {
            u64 at = s->hashes[i] ^ s->hashes[i] >> 32;
            while (s->table[at & (s->size - 1)] >= 0) at++;
            s->table[at & (s->size - 1)] = i;
        }
    }
    u64 at = h ^ h >> 32;
    while (s->table[at & (s->size - 1)] >= 0) at++;
    s->table[at & (s->size - 1)] = s->count - 1;
    return s->count - 1;
}

static void add_follow(Sets *s, const i64 *first, const i32 *follow, i32 p) {
    s->pool = grown(s->pool, &s->pool_room, s->used + first[p + 1] - first[p], sizeof(i32));
    for (i64 e = first[p]; e < first[p + 1]; e++)
        if (s->mark[follow[e]] != s->now) s->mark[follow[e]] = s->now, s->pool[s->used++] = follow[e];
}

/* Split 0..C-1 by which of the `num` sets present[] they are in; returns how many groups there are. `split`: 2 * C numbers. */
static i32 group_classes(i32 C, const u8 *member, i32 num, const i32 *present, i32 *group, i32 *split) {
    i32 groups = 1;
    memset(group, 0, sizeof(i32) * C);
    for (i32 j = 0; j < num; j++) {
        const u8 *in = member + (i64)present[j] * C;
        memset(split, 0xFF, sizeof(i32) * 2 * C);
        for (i32 c = 0; c < C; c++)
            if (in[c]) group[c] = split[group[c]] < 0 ? split[group[c]] = groups++ : split[group[c]];
        if (groups <= C) continue;
        groups = 0; /* some have no members any more: number them anew */
        memset(split, 0xFF, sizeof(i32) * 2 * C);
        for (i32 c = 0; c < C; c++) group[c] = split[group[c]] < 0 ? split[group[c]] = groups++ : split[group[c]];
    }
    return groups;
}

/* Position p < P reads a character of set chars[p], one of K, and goes to follow[first[p]..first[p + 1]]; position P is the
   end of the text, and what follows P are the positions at the beginning. member[k * C + c]: whether class c is in set k.
   The start is state 1, unless all is dead. `max_work` bounds the positions looked at, `limit` all steps. NULL where a
   bound is passed: *status says which. */
Table *subsets(i32 P, i32 K, i32 C, const i32 *chars, const i64 *first, const i32 *follow, const u8 *member, i64 max_states,
               i64 max_work, i64 limit, i64 *steps, i32 *status) {
    Sets s = {0, 64, 0, 1024, 256, malloc(sizeof(i64) * 64), malloc(sizeof(i64) * 256), malloc(sizeof(u64) * 64),
              malloc(sizeof(i32) * 1024), calloc(P + 1, sizeof(u64)), 0};
    i64 room = 64, work = 0;
    Table *made = malloc(sizeof *made);
    *made = (Table){0, C + 1, malloc(sizeof(i32) * room * (C + 1)), 0};
    i32 *group = malloc(sizeof(i32) * (C + 1)), *split = malloc(sizeof(i32) * (2 * C + 1)), *target = malloc(sizeof(i32) * (C + 1));
    i32 *present = malloc(sizeof(i32) * (K + 1)), *begin_of = calloc(K + 1, sizeof(i32)), *by_set = malloc(sizeof(i32) * (P + 1));
    memset(s.table, 0xFF, sizeof(i64) * 256);
    s.now = 1, set_number(&s, 0); /* the empty set is dead */
    s.now = 2, add_follow(&s, first, follow, P), set_number(&s, 0);
    *status = DONE, *steps = 0;
    for (i64 at = 1; at < s.count && *status == DONE; at++) {
        i64 low = s.begin[at], high = s.begin[at + 1];
        i32 num = 0, sum = 0;
        for (i64 i = low; i < high; i++) /* the positions, ordered by the set that they read */
            if (s.pool[i] < P && !begin_of[chars[s.pool[i]]]++) present[num++] = chars[s.pool[i]];
        for (i32 j = 0; j < num; j++) sum += begin_of[present[j]], begin_of[present[j]] = sum;
        for (i64 i = low; i < high; i++)
            if (s.pool[i] < P) by_set[--begin_of[chars[s.pool[i]]]] = s.pool[i];
        work += sum, *steps += sum + (i64)C * (num + 1) + 5;
        i32 groups = group_classes(C, member, num, present, group, split);
        made->delta = grown(made->delta, &room, at + 1, sizeof(i32) * (C + 1));
        made->delta[at * (C + 1)] = 0;
        memset(target, 0xFF, sizeof(i32) * groups);
        for (i32 c = 0; c < C; c++) {
            i32 g = group[c];
            if (target[g] < 0 && *steps <= limit && s.used <= 4 * max_work) {
                i64 begin = s.used;
                s.now++;
                for (i32 j = 0; j < num; j++) {
                    if (!member[(i64)present[j] * C + c]) continue;
                    i32 end = j + 1 < num ? begin_of[present[j + 1]] : sum;
                    for (i32 k = begin_of[present[j]]; k < end; k++) {
                        add_follow(&s, first, follow, by_set[k]);
                        *steps += 1 + first[by_set[k] + 1] - first[by_set[k]];
                    }
                }
                target[g] = (i32)set_number(&s, begin);
            }
            made->delta[at * (C + 1) + c + 1] = target[g];
        }
        for (i32 j = 0; j < num; j++) begin_of[present[j]] = 0;
        if (s.count > max_states) *status = TOO_MANY_STATES;
        else if (work > max_work || s.used > 4 * max_work) *status = TOO_MUCH_WORK;
        else if (*steps > limit) *status = OVER_LIMIT;
    }
    memset(made->delta, 0, sizeof(i32) * (C + 1));
    made->states = (i32)s.count, made->labels = calloc(s.count + 1, sizeof(i32));
    for (i64 at = 0; at < s.count && *status == DONE; at++)
        for (i64 i = s.begin[at]; i < s.begin[at + 1]; i++) made->labels[at] |= s.pool[i] == P;
    free(s.begin), free(s.table), free(s.hashes), free(s.pool), free(s.mark);
    free(group), free(split), free(target), free(present), free(begin_of), free(by_set);
    if (*status == DONE) return made;
    table_free(made);
    return 0;
}

/* Order places in `words` by their characters (Bentley and Sedgewick 1997, ternary quicksort); all agree before `depth`. */
typedef struct { const i32 *data; i32 length, number; } Word;

static i32 at_depth(Word w, i32 depth) { return depth < w.length ? w.data[depth] : -1; }

static void sort_words(Word *words, i64 n, i32 depth) {
    u64 seed = n;
    while (n > 1) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull; /* any, so that no order of texts is a bad one */
        i32 pivot = at_depth(words[(seed >> 33) % n], depth);
        i64 less = 0, i = 0, more = n;
        while (i < more) {
            i32 c = at_depth(words[i], depth);
            Word w = words[i];
            if (c < pivot) words[i++] = words[less], words[less++] = w;
            else if (c > pivot) words[i] = words[--more], words[more] = w;
            else i++;
        }
        sort_words(words, less, depth);
        sort_words(words + more, n - more, depth);
        if (pivot < 0) return; /* equal words */
        words += less, n = more - less, depth++;
    }
}

typedef struct { i32 column, target; } Edge;

/* States that are done, equal ones made once. Number 0 is the dead one. */
typedef struct {
    i64 count, room, used, pool_room, size;
    i64 *first, *table; /* where the edges of each begin in `pool`; places in a hash table */
    u64 *hashes;
    i32 *labels;
    Edge *pool;
} Register;

static void reserve_state(Register *r, i64 edges) {
    r->pool = grown(r->pool, &r->pool_room, r->used + edges, sizeof(Edge));
    if (r->count + 2 > r->room) {
        r->room *= 2;
        r->first = realloc(r->first, sizeof(i64) * r->room), r->hashes = realloc(r->hashes, sizeof(u64) * r->room);
        r->labels = realloc(r->labels, sizeof(i32) * r->room);
    }
    if (2 * r->count < r->size) return;
    r->size *= 4;
    r->table = realloc(r->table, sizeof(i64) * r->size);
    memset(r->table, 0xFF, sizeof(i64) * r->size);
    for (i64 i = 1; i < r->count; i++) {
        u64 place = r->hashes[i];
        while (r->table[place & (r->size - 1)] >= 0) place++;
        r->table[place & (r->size - 1)] = i;
    }
}

static i32 registered(Register *r, i32 label, const Edge *edges, i64 n) {
    u64 h = scattered(label), place;
    for (i64 e = 0; e < n; e++) h = scattered(h ^ ((u64)edges[e].column << 32 | (uint32_t)edges[e].target));
    reserve_state(r, n);
    for (place = h;; place++) {
        i64 at = r->table[place & (r->size - 1)];
        if (at < 0) break;
        if (r->hashes[at] == h && r->labels[at] == label && r->first[at + 1] - r->first[at] == n &&
            !memcmp(r->pool + r->first[at], edges, sizeof(Edge) * n))
            return (i32)at;
    }
    r->table[place & (r->size - 1)] = r->count;
    memcpy(r->pool + r->used, edges, sizeof(Edge) * n);
    r->used += n;
    r->first[r->count + 1] = r->used, r->labels[r->count] = label, r->hashes[r->count] = h;
    return (i32)r->count++;
}

/* The minimal automaton of texts, in linear time once they are sorted (Daciuk, Mihov, Watson and Watson 2000): the states
   of a text are made when the next text leaves them. `data`: all texts one after another as columns 1..width - 1 in the
   order of their codes; the first of equal texts gives the label. NULL: more than max_cells. */
Table *words_automaton(i64 num_texts, const i32 *lengths, const i32 *data, const i32 *labels, i32 width, i64 max_cells,
                       i32 *start) {
    Word *words = malloc(sizeof(Word) * (num_texts + 1));
    i32 longest = 0, depth = 0;
    for (i64 i = 0; i < num_texts; data += lengths[i++]) {
        words[i] = (Word){data, lengths[i], (i32)i};
        longest = lengths[i] > longest ? lengths[i] : longest;
    }
    sort_words(words, num_texts, 0);
    Register r = {1, 1024, 0, 1024, 1024, calloc(1024, sizeof(i64)), malloc(sizeof(i64) * 1024), calloc(1024, sizeof(u64)),
                  calloc(1024, sizeof(i32)), malloc(sizeof(Edge) * 1024)};
    memset(r.table, 0xFF, sizeof(i64) * r.size);
    /* Open states: those of the last text. The edges of each lie on a stack from low[depth] on, behind those before it. */
    i64 *low = calloc(longest + 2, sizeof(i64)), top = 0, room = 1024;
    i32 *giver = malloc(sizeof(i32) * (longest + 2)); /* which text gives each its label */
    memset(giver, 0xFF, sizeof(i32) * (longest + 2));
    Edge *stack = malloc(sizeof(Edge) * room);
    for (i64 i = 0; i <= num_texts && r.count * width <= max_cells; i++) {
        i32 same = 0, length = i < num_texts ? words[i].length : 0; /* how far the text agrees with the last one */
        while (i && same < depth && same < length && words[i].data[same] == words[i - 1].data[same]) same++;
        for (; depth > same && r.count * width <= max_cells; depth--) {
            i64 from = low[depth];
            stack[from - 1].target = registered(&r, giver[depth] < 0 ? 0 : labels[giver[depth]], stack + from, top - from);
            top = from, giver[depth] = -1;
        }
        if (i == num_texts || depth > same) break;
        for (; depth < length; low[++depth] = top) {
            stack = grown(stack, &room, top + 1, sizeof(Edge));
            stack[top++] = (Edge){words[i].data[depth], 0};
        }
        if (giver[depth] < 0 || words[i].number < giver[depth]) giver[depth] = words[i].number;
    }
    Table *made = 0;
    *start = registered(&r, giver[0] < 0 ? 0 : labels[giver[0]], stack, top);
    if (r.count * width <= max_cells) {
        made = malloc(sizeof *made);
        *made = (Table){(i32)r.count, width, calloc(r.count * width, sizeof(i32)), r.labels};
        for (i64 s = 1; s < r.count; s++)
            for (i64 e = r.first[s]; e < r.first[s + 1]; e++) made->delta[s * width + r.pool[e].column] = r.pool[e].target;
    } else free(r.labels);
    free(words), free(low), free(giver), free(stack), free(r.pool), free(r.first), free(r.table), free(r.hashes);
    return made;
}

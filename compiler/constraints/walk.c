/* Masks in compiled form: one depth-first walk over the vocabulary's tree and an automaton at once.

   The automaton is a table of contexts that Python fills in when the walk first meets one (`Resolve`), so that the
   meaning of a state stays in one place, in Python. A state is `context << 32 | leaf`, as in schema/machine.py.
   Nothing here allocates inside a walk but what Resolve asks for; no state is kept between walks but the tables. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;
typedef uint8_t u8;
typedef uint64_t u64;

#define DEAD (-1)
#define UNKNOWN (-2)
#define FAILED (-3)
#define NON_ASCII 1
#define INVALID 2
#define UNBOUNDED 255
#define MAX_DEPTH 250

/* The tree */

typedef struct { i32 skip, first_token; u8 byte, depth, flags, length; } Node; /* flags, length: of the tokens below */
typedef struct { u64 low, high; } Ascii;                                      /* which ASCII bytes they hold */

typedef struct {
    i32 num_nodes, num_tokens;
    Node *nodes;   /* [num_nodes + 1] in depth-first order, without the root */
    Ascii *below;  /* [num_nodes] */
    i32 *tokens;   /* [num_tokens] ids in the order of their nodes */
} Trie;

typedef struct { Ascii ascii; u8 flags, length, need, low, high; } Path; /* of one node: need more continuation bytes */

static Path read_byte(Path p, u8 b) {
    if (p.need) {
        if (b < p.low || b > p.high) p.flags |= INVALID;
        p.need--, p.low = 0x80, p.high = 0xBF;
        return p;
    }
    if (p.length < UNBOUNDED - 1) p.length++;
    if (b < 0x40) { p.ascii.low |= 1ull << b; return p; }
    if (b < 0x80) { p.ascii.high |= 1ull << (b - 0x40); return p; }
    p.flags |= NON_ASCII;
    if (b < 0xC2 || b > 0xF4) { p.flags |= INVALID; return p; }
    p.need = b < 0xE0 ? 1 : b < 0xF0 ? 2 : 3;
    p.low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
    p.high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    return p;
}

/* From the breadth-first arrays of TokenTrie. `needs_quote`: only the nodes that lead to a token with a double quote. */
Trie *trie_new(i32 n, const u8 *bytes, const i64 *children, const i64 *token_starts, const i64 *tokens, int needs_quote) {
    Trie *t = malloc(sizeof *t);
    u8 *kept = calloc(n + 1, 1), *quoted = calloc(n + 1, 1); /* bits: the path has a quote; a kept token is below */
    i32 *stack = malloc(sizeof(i32) * (n + 1)), *depth = malloc(sizeof(i32) * (n + 1)), top = 0, count = 0;
    for (i32 p = 0; p < n; p++)
        for (i64 c = children[p]; c < children[p + 1]; c++) quoted[c] = quoted[p] || bytes[c] == '"';
    for (i32 p = n - 1; p >= 0; p--) {
        kept[p] = (quoted[p] || !needs_quote) && token_starts[p] < token_starts[p + 1];
        for (i64 c = children[p]; c < children[p + 1]; c++) kept[p] |= kept[c];
    }
    t->nodes = malloc(sizeof(Node) * (n + 1));
    t->below = calloc(n + 1, sizeof(Ascii));
    t->tokens = malloc(sizeof(i32) * (token_starts[n] + 1));
    t->num_tokens = 0;
    Path paths[MAX_DEPTH + 2];
    memset(paths, 0, sizeof paths);
    i32 open[MAX_DEPTH + 2], num_open = 0; /* nodes whose end is not known yet */
    for (i64 c = children[1] - 1; c >= children[0]; c--)
        if (kept[c]) stack[top] = (i32)c, depth[top++] = 0;
    while (top) {
        i32 p = stack[--top], d = depth[top];
        while (num_open > d) t->nodes[open[--num_open]].skip = count;
        Path path = paths[d + 1] = read_byte(paths[d], bytes[p]);
        t->nodes[count] = (Node){0, t->num_tokens, bytes[p], (u8)d, 0, 0};
        if (quoted[p] || !needs_quote)
            for (i64 k = token_starts[p]; k < token_starts[p + 1]; k++) {
                t->tokens[t->num_tokens++] = (i32)tokens[k];
                t->below[count] = path.ascii, t->nodes[count].flags = path.flags, t->nodes[count].length = path.length;
            }
        open[num_open++] = count++;
        for (i64 c = children[p + 1] - 1; c >= children[p]; c--)
            if (kept[c]) stack[top] = (i32)c, depth[top++] = d + 1;
    }
    while (num_open) t->nodes[open[--num_open]].skip = count;
    t->num_nodes = count;
    t->nodes[count] = (Node){count, t->num_tokens, 0, 0, 0, 0};
    i32 parent[MAX_DEPTH + 2]; /* what is below a node is below its parent */
    memset(parent, 0xFF, sizeof parent);
    i32 *up = malloc(sizeof(i32) * (count + 1));
    for (i32 i = 0; i < count; i++) {
        int d = t->nodes[i].depth;
        up[i] = d ? parent[d - 1] : -1;
        parent[d] = i;
    }
    for (i32 i = count - 1; i >= 0; i--) {
        if (up[i] < 0) continue;
        Node *n0 = &t->nodes[up[i]];
        n0->flags |= t->nodes[i].flags;
        if (t->nodes[i].length > n0->length) n0->length = t->nodes[i].length;
        t->below[up[i]].low |= t->below[i].low, t->below[up[i]].high |= t->below[i].high;
    }
    free(up), free(kept), free(quoted), free(stack), free(depth);
    return t;
}

void trie_free(Trie *t) { free(t->nodes), free(t->below), free(t->tokens), free(t); }

/* A character automaton with its spelling: arrays of ByteDfa, read in place. */

typedef struct { Ascii ascii; u8 known, non_ascii, length; } Closure; /* any text over these, so long, can be read */

typedef struct {
    i32 num_classes, width, num_states, num_wide; /* classes, nodes of the speller, states, classes beyond ASCII */
    const i32 *table, *delta, *labels, *wide;     /* [K, 256], [S, C], [S], [num_wide] */
    const u8 *live;                               /* [S * K] */
    int wide_complete;                            /* every character beyond ASCII has a class that may be read */
    i32 *freedom;                                 /* [S] so many characters of any live class can be read, whatever comes */
    Closure *closures;                            /* [S] */
} Dfa;

/* Per state the length of the shortest text to an accepting one (-1: none) and of the longest (-1: no bound, -2: none).
   Every state but the dead one, 0, leads to an accepting one or is given -1 and -2. */
void distances(i32 S, i32 C, const i32 *delta, const u8 *accept, i64 *shortest, i64 *longest) {
    i32 *first = calloc(S + 2, sizeof(i32)), *from = malloc(sizeof(i32) * ((i64)S * C + 1));
    i32 *todo = malloc(sizeof(i32) * (S + 1)), *degree = calloc(S + 1, sizeof(i32)), count = 0;
    for (i64 e = 0; e < (i64)S * C; e++) first[delta[e] + 2]++;
    for (i32 s = 0; s <= S; s++) first[s + 1] += first[s];
    for (i64 e = 0; e < (i64)S * C; e++) from[first[delta[e] + 1]++] = (i32)(e / C);
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

/* Breadth-first from the states at which some class is dead, against the steps; unreached: no bound. */
static i32 *freedom_of(i32 S, i32 C, const i32 *delta) {
    i32 *first = calloc(S + 2, sizeof(i32)), *from = malloc(sizeof(i32) * ((i64)S * C + 1));
    i32 *found = malloc(sizeof(i32) * S), *todo = malloc(sizeof(i32) * S), count = 0;
    for (i64 e = 0; e < (i64)S * C; e++)
        if (e % C) first[delta[e] + 2]++;
    for (i32 s = 0; s <= S; s++) first[s + 1] += first[s];
    for (i64 e = 0; e < (i64)S * C; e++)
        if (e % C) from[first[delta[e] + 1]++] = (i32)(e / C);
    for (i32 s = 0; s < S; s++) {
        int stuck = s == 0 || C < 2;
        for (i32 x = 1; x < C; x++) stuck |= !delta[(i64)s * C + x];
        found[s] = stuck ? 0 : UNBOUNDED;
        if (stuck) todo[count++] = s;
    }
    for (i32 i = 0; i < count; i++) {
        i32 s = todo[i];
        if (!s || found[s] + 1 >= UNBOUNDED) continue; /* steps to the dead state are counted above */
        for (i32 e = first[s]; e < first[s + 1]; e++)
            if (found[from[e]] == UNBOUNDED) found[from[e]] = found[s] + 1, todo[count++] = from[e];
    }
    free(first), free(from), free(todo);
    return found;
}

Dfa *dfa_new(i32 num_states, i32 num_classes, i32 width, const i32 *table, const i32 *delta, const i32 *labels,
             const u8 *live, const i32 *wide, i32 num_wide, int wide_complete) {
    Dfa *d = malloc(sizeof *d);
    *d = (Dfa){num_classes, width, num_states, num_wide, table, delta, labels, wide, live, wide_complete,
               freedom_of(num_states, num_classes, delta), calloc(num_states, sizeof(Closure))};
    return d;
}

void dfa_free(Dfa *d) { free(d->closures), free(d->freedom), free(d); }

i32 dfa_freedom(const Dfa *d, i32 s) { return d->freedom[s]; }

static inline i64 dfa_step(const Dfa *d, i64 leaf, u8 b) {
    i32 s = (i32)(leaf / d->width), k = (i32)(leaf % d->width), entry = d->table[k * 256 + b];
    if (entry < 0) {
        i32 target = d->delta[(i64)s * d->num_classes + ~entry];
        return target ? (i64)target * d->width : DEAD;
    }
    i64 after = leaf - k + entry;
    return d->live[after] ? after : DEAD;
}

/* All classes, where any text of some length over them can be read; or those that keep state s, any number of times; or,
   where there are none, the live ones if each leads to the same state, as long as that goes on. */
static const Closure *closure_of(Dfa *d, i32 s) {
    Closure *c = &d->closures[s];
    if (c->known) return c;
    i32 C = d->num_classes;
    const i32 *row = d->delta + (i64)s * C;
    u8 *in = calloc(C, 1);
    int any = 0, length = UNBOUNDED;
    for (i32 x = 1; x < C; x++) any |= in[x] = row[x] == s;
    if (d->freedom[s] == UNBOUNDED || (!any && d->freedom[s])) {
        length = d->freedom[s];
        for (i32 x = 1; x < C; x++) any = in[x] = 1;
    }
    if (!any) {
        i32 at = s;
        for (i32 x = 1; x < C; x++) any |= in[x] = row[x] != 0;
        for (length = 0; any && length < UNBOUNDED; length++) {
            i32 target = 0;
            for (i32 x = 1; x < C && target != DEAD; x++) {
                if (!in[x]) continue;
                i32 next = d->delta[(i64)at * C + x];
                target = !next || (target && target != next) ? DEAD : next;
            }
            if (target == DEAD) { /* the last step may lead to different states */
                int alive = 1;
                for (i32 x = 1; x < C; x++) alive &= !in[x] || d->delta[(i64)at * C + x] != 0;
                length += alive;
                break;
            }
            if (target == at) { length = UNBOUNDED; break; }
            at = target;
        }
    }
    Ascii ascii = {0, 0};
    for (int b = 0; b < 128; b++) {
        i32 entry = d->table[b];
        if (entry < 0 && in[~entry]) b < 64 ? (ascii.low |= 1ull << b) : (ascii.high |= 1ull << (b - 64));
    }
    int non_ascii = d->wide_complete;
    for (i32 i = 0; i < d->num_wide; i++) non_ascii &= in[d->wide[i]];
    free(in);
    *c = (Closure){ascii, 1, (u8)non_ascii, (u8)(length > UNBOUNDED ? UNBOUNDED : length)};
    return c;
}

static inline int covers(const Closure *c, const Trie *t, i32 i) {
    const Node *n = &t->nodes[i];
    return n->length <= c->length && !(n->flags & INVALID) && (c->non_ascii || !(n->flags & NON_ASCII)) &&
           !(t->below[i].low & ~c->ascii.low) && !(t->below[i].high & ~c->ascii.high);
}

/* Declared names as a tree: children of node n are [first[n], first[n + 1]). In the tree's order, the names below a node
   are consecutive: [low[n], high[n]). */

typedef struct {
    i32 num_nodes;
    const i32 *first, *child, *end; /* end: the number of the name that ends there, or -1 */
    const u8 *byte;
    i32 *low, *high, *number, num_names; /* number: by place in the tree's order */
} Names;

Names *names_new(i32 num_nodes, const i32 *first, const i32 *child, const i32 *end, const u8 *byte) {
    Names *n = malloc(sizeof *n);
    i32 *space = malloc(sizeof(i32) * 5 * num_nodes), *todo = space + 3 * num_nodes, top = 0; /* 2: each node comes twice */
    *n = (Names){num_nodes, first, child, end, byte, space, space + num_nodes, space + 2 * num_nodes, 0};
    todo[top++] = 0;
    while (top) {
        i32 node = todo[--top];
        if (node < 0) { /* all below is done */
            n->high[~node] = n->num_names;
            continue;
        }
        n->low[node] = n->num_names;
        if (end[node] >= 0) n->number[n->num_names++] = end[node];
        todo[top++] = ~node;
        for (i32 i = first[node]; i < first[node + 1]; i++) todo[top++] = child[i];
    }
    return n;
}

void names_free(Names *n) { free(n->low), free(n); }

/* Contexts */

enum { NOTHING, MOVES, TEXT, STRING, PLAIN, NAME, OPEN_NAME, PYTHON };

typedef struct {
    int kind;
    i32 length;         /* TEXT: bytes; MOVES: moves; STRING, PLAIN, OPEN_NAME: labels */
    Dfa *dfa;           /* STRING, PLAIN; OPEN_NAME: of names that are not declared */
    const Names *names; /* NAME, OPEN_NAME */
    i32 base;           /* OPEN_NAME: leaves from here on are the automaton's */
    i64 *targets;       /* by move, or by outcome; UNKNOWN until resolved */
    i32 *outcomes;      /* by label (0: the text may not end), or the running count of allowed names */
    u8 *bytes;          /* MOVES: the number of the move + 1 by byte; TEXT: the text */
} Context;

typedef struct Machine Machine;
typedef i64 (*Resolve)(i64 context, i64 outcome); /* the state behind a text; with outcome -1: define the context */
typedef i64 (*Step)(i64 state, i64 byte);

struct Machine {
    i64 num_contexts;
    Context *contexts;
    Resolve resolve;
    Step step;
};

Machine *machine_new(Resolve resolve, Step step) {
    Machine *m = calloc(1, sizeof *m);
    m->resolve = resolve, m->step = step;
    return m;
}

static void context_free(Context *c) { free(c->targets), free(c->outcomes), free(c->bytes); }

void machine_free(Machine *m) {
    for (i64 i = 0; i < m->num_contexts; i++) context_free(&m->contexts[i]);
    free(m->contexts), free(m);
}

static Context *fresh(Machine *m, i64 number, int kind) {
    if (number >= m->num_contexts) {
        i64 size = number + 1 + number / 2 + 16;
        m->contexts = realloc(m->contexts, size * sizeof(Context));
        memset(m->contexts + m->num_contexts, 0, (size - m->num_contexts) * sizeof(Context));
        m->num_contexts = size;
    }
    Context *c = &m->contexts[number];
    context_free(c);
    memset(c, 0, sizeof *c);
    c->kind = kind;
    return c;
}

static void *copied(const void *data, size_t size) {
    void *made = malloc(size ? size : 1);
    memcpy(made, data, size);
    return made;
}

static i64 *unknown(i32 count) {
    i64 *made = malloc(sizeof(i64) * (count ? count : 1));
    for (i32 i = 0; i < count; i++) made[i] = UNKNOWN;
    return made;
}

void define_python(Machine *m, i64 number) { fresh(m, number, PYTHON); }

void define_moves(Machine *m, i64 number, i32 count, const u8 *bytes, const i64 *targets) {
    Context *c = fresh(m, number, MOVES);
    c->length = count;
    c->targets = copied(targets, sizeof(i64) * count);
    c->bytes = calloc(512, 1);
    for (i32 i = 0; i < count; i++) { /* two bytes each: 256 moves do not fit one */
        c->bytes[2 * bytes[i]] = (u8)((i + 1) & 255);
        c->bytes[2 * bytes[i] + 1] = (u8)((i + 1) >> 8);
    }
}

void define_text(Machine *m, i64 number, i32 length, const u8 *text, i64 target) {
    Context *c = fresh(m, number, TEXT);
    c->length = length;
    c->bytes = copied(text, length);
    c->targets = copied(&target, sizeof target);
}

void define_leaf(Machine *m, i64 number, int is_string, Dfa *dfa, i32 num_labels, const i32 *outcomes) {
    Context *c = fresh(m, number, is_string ? STRING : PLAIN);
    c->dfa = dfa;
    c->length = num_labels;
    c->outcomes = copied(outcomes, sizeof(i32) * num_labels);
    c->targets = unknown(num_labels);
}

/* `allowed`: a bit for each name's number, as little-endian bytes. */
void define_name(Machine *m, i64 number, const Names *names, const u8 *allowed, i32 num_bytes) {
    Context *c = fresh(m, number, NAME);
    i32 count = names->num_names;
    c->names = names;
    c->targets = unknown(count);
    c->outcomes = malloc(sizeof(i32) * (count + 1));
    c->outcomes[0] = 0;
    for (i32 i = 0; i < count; i++) {
        i32 bit = names->number[i];
        c->outcomes[i + 1] = c->outcomes[i] + (bit >> 3 < num_bytes && allowed[bit >> 3] >> (bit & 7) & 1);
    }
}

void define_open_name(Machine *m, i64 number, const Names *names, i32 base, Dfa *dfa, i32 num_labels, const i32 *outcomes) {
    define_leaf(m, number, 1, dfa, num_labels, outcomes);
    Context *c = &m->contexts[number];
    c->kind = OPEN_NAME;
    c->names = names;
    c->base = base;
}

static i32 name_child(const Names *n, i32 node, u8 b) {
    for (i32 i = n->first[node]; i < n->first[node + 1]; i++)
        if (n->byte[i] == b) return n->child[i];
    return -1;
}

static i64 leave(Machine *m, i64 number, i32 outcome) {
    Context *c = &m->contexts[number];
    if (c->targets[outcome] == UNKNOWN) {
        i64 target = m->resolve(number, c->kind == NAME ? c->names->number[outcome] : outcome);
        if (target == FAILED) return FAILED;
        m->contexts[number].targets[outcome] = target; /* resolving may have moved the contexts */
    }
    return m->contexts[number].targets[outcome];
}

/* Meet contexts ahead of their use, breadth-first from `state`, until `limit` are known. Returns how many, or FAILED. */
i64 machine_explore(Machine *m, i64 state, i64 limit) {
    i64 size = 4 * limit + 64, count = 0, *todo = malloc(sizeof(i64) * size), seen_size = 0;
    u8 *seen = 0;
    todo[count++] = state >> 32;
    for (i64 i = 0; i < count && i < limit; i++) {
        i64 number = todo[i], num_targets = 0;
        if ((number >= m->num_contexts || !m->contexts[number].kind) && m->resolve(number, -1) == FAILED) {
            count = FAILED;
            break;
        }
        Context c = m->contexts[number];
        if (c.kind == MOVES) num_targets = c.length;
        else if (c.kind == TEXT) num_targets = 1;
        else if (c.kind == NAME) num_targets = c.names->num_names;
        else if (c.kind != PYTHON) num_targets = c.length;
        for (i64 k = 0; k < num_targets && count < size; k++) {
            i64 target;
            if (c.kind == MOVES || c.kind == TEXT) target = c.targets[k];
            else if (c.kind == NAME ? c.outcomes[k + 1] == c.outcomes[k] : !k || !c.outcomes[k]) continue;
            else if ((target = leave(m, number, (i32)k)) == FAILED) {
                free(todo), free(seen);
                return FAILED;
            }
            if (target < 0) continue;
            if (target >> 32 >= seen_size) {
                i64 larger = 2 * (target >> 32) + 256;
                seen = realloc(seen, larger);
                memset(seen + seen_size, 0, larger - seen_size);
                seen_size = larger;
            }
            if (!seen[target >> 32]) seen[target >> 32] = 1, todo[count++] = target >> 32;
        }
    }
    free(todo), free(seen);
    return count;
}

static i64 step(Machine *m, i64 state, u8 b) {
    for (;;) {
        i64 number = state >> 32, leaf = state & 0xFFFFFFFFll, base = number << 32;
        if ((number >= m->num_contexts || !m->contexts[number].kind) && m->resolve(number, -1) == FAILED)
            return FAILED;
        const Context *c = &m->contexts[number];
        switch (c->kind) {
        case MOVES: {
            i32 move = c->bytes[2 * b] | c->bytes[2 * b + 1] << 8;
            return move ? c->targets[move - 1] : DEAD;
        }
        case TEXT:
            if (c->bytes[leaf] != b) return DEAD;
            return leaf + 1 < c->length ? state + 1 : c->targets[0];
        case STRING: {
            if (b == '"' && leaf % c->dfa->width == 0) { /* within a character it belongs to an escape */
                i32 label = c->dfa->labels[leaf / c->dfa->width];
                return label && c->outcomes[label] ? leave(m, number, label) : DEAD;
            }
            i64 after = dfa_step(c->dfa, leaf, b);
            return after < 0 ? DEAD : base | after;
        }
        case PLAIN: {
            i64 after = dfa_step(c->dfa, leaf, b);
            i32 label = leaf % c->dfa->width ? 0 : c->dfa->labels[leaf / c->dfa->width];
            if (after >= 0) return base | after;
            if (!label || !c->outcomes[label]) return DEAD;
            if ((state = leave(m, number, label)) < 0) return state;
            continue; /* the value is over: the byte belongs to what follows */
        }
        case NAME: {
            i32 node = (i32)leaf, place = c->names->low[node];
            if (b == '"')
                return c->names->end[node] >= 0 && c->outcomes[place + 1] > c->outcomes[place] ? leave(m, number, place) : DEAD;
            i32 child = name_child(c->names, node, b);
            if (child < 0 || c->outcomes[c->names->high[child]] == c->outcomes[c->names->low[child]]) return DEAD;
            return base | child;
        }
        case OPEN_NAME: {
            i64 inner = leaf - c->base; /* below 0: a node of the tree */
            if (b == '"' && (inner < 0 || inner % c->dfa->width == 0)) {
                i32 label = 1;
                if (inner < 0 && c->names->end[leaf] >= 0) label = 2 + c->names->end[leaf];
                return label && c->outcomes[label] ? leave(m, number, label) : DEAD;
            }
            if (inner < 0) {
                i32 child = name_child(c->names, (i32)leaf, b);
                if (child >= 0) return base | child;
                inner = c->dfa->width; /* the one live state of free text */
            }
            i64 after = dfa_step(c->dfa, inner, b);
            return after < 0 ? DEAD : base | (c->base + after);
        }
        default:
            return m->step(state, b);
        }
    }
}

i64 step_bytes(Machine *m, i64 state, const u8 *data, i32 length) {
    for (i32 i = 0; i < length && state >= 0; i++) state = step(m, state, data[i]);
    return state;
}

/* Masks */

/* The closure of a state between two characters of a text; NULL elsewhere. */
static inline const Closure *closure_at(const Machine *m, i64 state) {
    const Context *c = &m->contexts[state >> 32];
    i64 leaf = state & 0xFFFFFFFFll;
    if ((state >> 32) >= m->num_contexts) return 0;
    if (c->kind == OPEN_NAME) leaf -= c->base;
    else if (c->kind != STRING && c->kind != PLAIN) return 0;
    return leaf < 0 || leaf % c->dfa->width ? 0 : closure_of(c->dfa, (i32)(leaf / c->dfa->width));
}

static inline i32 mark(const Trie *t, i32 from, i32 to, i32 *row, i32 *words, i32 count) {
    for (i32 k = from; k < to; k++) {
        i32 token = t->tokens[k], word = token >> 5;
        if (!row[word]) words[count++] = word;
        row[word] |= (i32)(1u << (token & 31));
    }
    return count;
}

static i32 gather(i32 *row, const i32 *words, i32 *values, i32 count) {
    for (i32 i = 0; i < count; i++) values[i] = row[words[i]], row[words[i]] = 0;
    return count;
}

/* The words of the tokens that can be read from `state`, and `num_ends` more. `row` is zero before and after.
   Returns the number of words, or FAILED. */
i32 machine_mask(Machine *m, const Trie *t, i64 state, i32 num_ends, const i32 *ends, i32 *row, i32 *words, i32 *values) {
    i64 at[MAX_DEPTH + 2];
    i32 count = 0, n = t->num_nodes;
    at[0] = state;
    for (i32 i = 0; i < n;) {
        const Node *node = &t->nodes[i];
        i64 after = step(m, at[node->depth], node->byte);
        if (after == DEAD) { i = node->skip; continue; }
        if (after < 0) { gather(row, words, values, count); return FAILED; }
        const Closure *c = closure_at(m, after);
        if (c && covers(c, t, i)) {
            count = mark(t, node->first_token, t->nodes[node->skip].first_token, row, words, count);
            i = node->skip;
            continue;
        }
        at[node->depth + 1] = after;
        count = mark(t, node->first_token, t->nodes[i + 1].first_token, row, words, count);
        i++;
    }
    for (i32 k = 0; k < num_ends; k++) {
        i32 word = ends[k] >> 5;
        if (!row[word]) words[count++] = word;
        row[word] |= (i32)(1u << (ends[k] & 31));
    }
    return gather(row, words, values, count);
}

/* The same for a character automaton alone. */
i32 dfa_mask(Dfa *d, const Trie *t, i64 state, i32 *row, i32 *words, i32 *values) {
    i64 at[MAX_DEPTH + 2];
    i32 count = 0, n = t->num_nodes;
    at[0] = state;
    for (i32 i = 0; i < n;) {
        const Node *node = &t->nodes[i];
        i64 after = dfa_step(d, at[node->depth], node->byte);
        if (after < 0) { i = node->skip; continue; }
        if (after % d->width == 0 && covers(closure_of(d, (i32)(after / d->width)), t, i)) {
            count = mark(t, node->first_token, t->nodes[node->skip].first_token, row, words, count);
            i = node->skip;
            continue;
        }
        at[node->depth + 1] = after;
        count = mark(t, node->first_token, t->nodes[i + 1].first_token, row, words, count);
        i++;
    }
    return gather(row, words, values, count);
}

/* For each token the state it leads to, DEAD if it cannot be read. */
void dfa_states(Dfa *d, const Trie *t, i64 state, i64 *out) {
    i64 at[MAX_DEPTH + 2];
    at[0] = state;
    for (i32 i = 0; i < t->num_nodes;) {
        const Node *node = &t->nodes[i];
        i64 after = dfa_step(d, at[node->depth], node->byte);
        if (after < 0) { i = node->skip; continue; }
        at[node->depth + 1] = after;
        for (i32 k = node->first_token; k < t->nodes[i + 1].first_token; k++) out[t->tokens[k]] = after;
        i++;
    }
}

/* How many bytes can be read from `state`. */
i32 dfa_num_moves(Dfa *d, i64 state) {
    i32 count = 0;
    for (int b = 0; b < 256; b++) count += dfa_step(d, state, (u8)b) >= 0;
    return count;
}

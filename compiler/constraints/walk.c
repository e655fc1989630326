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

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDER __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define WIDER
#endif
#define DEAD (-1)
#define UNKNOWN (-2)
#define FAILED (-3)
#define NON_ASCII 1
#define INVALID 2
#define SPACES 4 /* separators beyond ASCII, which `.` or \S leave out */
#define UNBOUNDED 255
#define MAX_LOOKED_AT 1000

/* The tree */

typedef struct { u64 low, high; } Ascii; /* a set of ASCII bytes */
typedef struct { Ascii ascii; u8 flags, length; } Contents; /* of a text, or of some: bytes, kinds of others, characters */
typedef struct { i32 tokens, own, below; } Span; /* tokens that end at a node: [tokens, own); below it: [own, below) */

typedef struct {
    i32 num_nodes, num_tokens;
    u8 *bytes;          /* [N] nodes in breadth-first order, 0 the root */
    i32 *children;      /* [N + 1] */
    Span *spans;        /* [N] */
    Contents *contents; /* [N] of the tokens at the node and below */
    i32 *tokens;        /* ids in depth-first order, so that what is below a node is one span */
    u64 *low, *high;    /* [words * 32] by id: ASCII bytes of a token, and the rest of its Contents */
    u8 *flags, *lengths;
    i32 *nodes;         /* [N] scratch space of walks */
    i64 *states;
} Trie;

typedef struct { Contents so_far; i32 code; u8 need, low, high; } Path; /* `need` more continuation bytes, the next low..high */

static const i32 SPACE_CODES[] = {0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006,
                                  0x2007, 0x2008, 0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF};
#define NUM_SPACES (int)(sizeof SPACE_CODES / sizeof *SPACE_CODES)

static int is_space(i32 c) {
    for (int i = 0; i < NUM_SPACES; i++)
        if (SPACE_CODES[i] == c) return 1;
    return 0;
}

static i32 overlap(i32 low, i32 high, i32 from, i32 to) {
    low = low < from ? from : low, high = high > to ? to : high;
    return high > low ? high - low : 0;
}

static Path read_byte(Path p, u8 b) {
    Contents *c = &p.so_far;
    if (p.need) {
        if (b < p.low || b > p.high) c->flags |= INVALID;
        p.need--, p.low = 0x80, p.high = 0xBF;
        p.code = p.code << 6 | (b & 0x3F);
        if (!p.need && is_space(p.code)) c->flags |= SPACES;
        return p;
    }
    if (c->length < UNBOUNDED - 1) c->length++;
    if (b < 0x40) { c->ascii.low |= 1ull << b; return p; }
    if (b < 0x80) { c->ascii.high |= 1ull << (b - 0x40); return p; }
    c->flags |= NON_ASCII;
    if (b < 0xC2 || b > 0xF4) { c->flags |= INVALID; return p; }
    p.need = b < 0xE0 ? 1 : b < 0xF0 ? 2 : 3;
    p.code = b & (b < 0xE0 ? 0x1F : b < 0xF0 ? 0x0F : 0x07);
    p.low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
    p.high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    return p;
}

static void add(Contents *to, Contents more) {
    to->ascii.low |= more.ascii.low, to->ascii.high |= more.ascii.high, to->flags |= more.flags;
    if (more.length > to->length) to->length = more.length;
}

/* From the arrays of TokenTrie. `quoted`: only the tokens with a double quote. `num_words` 0: not for `closure_row`. */
Trie *trie_new(i32 n, const u8 *bytes, const i64 *children, const i64 *token_starts, const i64 *tokens, int quoted, i32 num_words) {
    u8 *has_quote = calloc(n, 1), *kept = calloc(n, 1);
    i32 *old = malloc(sizeof(i32) * n), count = 0;
    Path *paths = calloc(n, sizeof(Path));
    for (i32 p = 0; p < n; p++)
        for (i64 c = children[p]; c < children[p + 1]; c++) {
            has_quote[c] = has_quote[p] || bytes[c] == '"';
            paths[c] = read_byte(paths[p], bytes[c]);
        }
    for (i32 p = n - 1; p >= 0; p--) {
        kept[p] = !p || ((has_quote[p] || !quoted) && token_starts[p] < token_starts[p + 1]);
        for (i64 c = children[p]; c < children[p + 1]; c++) kept[p] |= kept[c];
    }
    for (i32 p = 0; p < n; p++)
        if (kept[p]) old[count++] = p;
    Trie *t = malloc(sizeof *t);
    *t = (Trie){count, 0, malloc(count), malloc(sizeof(i32) * (count + 1)), malloc(sizeof(Span) * count),
                calloc(count, sizeof(Contents)), malloc(sizeof(i32) * (token_starts[n] + 1)),
                calloc(32 * num_words, sizeof(u64)), calloc(32 * num_words, sizeof(u64)), malloc(32 * num_words),
                malloc(32 * num_words), malloc(sizeof(i32) * (count + 1)), malloc(sizeof(i64) * (count + 1))};
    memset(t->flags, 0xFF, 32 * num_words), memset(t->lengths, 0xFF, 32 * num_words); /* those without bytes: in no set */
    i32 next = 1;
    for (i32 i = 0; i < count; i++) {
        t->bytes[i] = bytes[old[i]];
        t->children[i] = next;
        for (i64 c = children[old[i]]; c < children[old[i] + 1]; c++) next += kept[c];
    }
    t->children[count] = next;
    i32 top = 0, *stack = malloc(sizeof(i32) * 2 * (count + 1)); /* a node comes back, negated, when all below is done */
    stack[top++] = 0;
    while (top) {
        i32 i = stack[--top];
        if (i < 0) {
            t->spans[~i].below = t->num_tokens;
            continue;
        }
        i32 p = old[i];
        t->spans[i].tokens = t->num_tokens;
        if (has_quote[p] || !quoted)
            for (i64 k = token_starts[p]; k < token_starts[p + 1]; k++) {
                const Contents *c = &paths[p].so_far;
                if (num_words) {
                    t->low[tokens[k]] = c->ascii.low, t->high[tokens[k]] = c->ascii.high;
                    t->flags[tokens[k]] = c->flags, t->lengths[tokens[k]] = c->length;
                }
                t->tokens[t->num_tokens++] = (i32)tokens[k];
                add(&t->contents[i], paths[p].so_far);
            }
        t->spans[i].own = t->num_tokens;
        stack[top++] = ~i;
        for (i32 c = t->children[i + 1] - 1; c >= t->children[i]; c--) stack[top++] = c;
    }
    for (i32 i = count - 1; i >= 0; i--)
        for (i32 c = t->children[i]; c < t->children[i + 1]; c++) add(&t->contents[i], t->contents[c]);
    free(stack), free(has_quote), free(kept), free(old), free(paths);
    return t;
}

void trie_free(Trie *t) {
    free(t->bytes), free(t->children), free(t->spans), free(t->contents), free(t->tokens), free(t->low), free(t->high);
    free(t->flags), free(t->lengths);
    free(t->nodes), free(t->states), free(t);
}

/* Sets of texts: all over some characters, up to a length. */

typedef struct { Ascii ascii; u8 flags, length; } Closure; /* flags: other characters, and invalid bytes, that may occur */

static inline int covers(const Closure *c, const Contents *found) {
    return found->length <= c->length && !(found->flags & ~c->flags) && !(found->ascii.low & ~c->ascii.low) &&
           !(found->ascii.high & ~c->ascii.high);
}

/* The row of the tokens in such a set, `num_words` words: each token is looked at, without a branch. */
WIDER void closure_row(const Trie *t, const Closure *c, i32 *row, i32 num_words) {
    u64 low = ~c->ascii.low, high = ~c->ascii.high;
    u8 flags = (u8)~c->flags, length = c->length, inside[32];
    for (i32 w = 0; w < num_words; w++) {
        const u64 *l = t->low + 32 * w, *h = t->high + 32 * w;
        const u8 *f = t->flags + 32 * w, *n = t->lengths + 32 * w;
        for (int k = 0; k < 32; k++) inside[k] = !((l[k] & low) | (h[k] & high));
        for (int k = 0; k < 32; k++) inside[k] &= !(f[k] & flags) & (n[k] <= length);
        uint32_t bits = 0;
        for (int k = 0; k < 32; k++) bits |= (uint32_t)inside[k] << k;
        row[w] = (i32)bits;
    }
}

/* A character automaton with its spelling: arrays of ByteDfa, read in place. */

typedef struct {
    i32 num_classes, width, num_states, num_wide, num_spaces; /* classes, nodes of the speller, states */
    const i32 *table, *delta, *labels;            /* [K, 256], [S, C], [S] */
    const i32 *wide, *spaces;                     /* classes beyond ASCII: of all but SPACES, and of these; 0: of none */
    const u8 *live;                               /* [S * K] */
    i32 *stamps, stamp;                           /* [S] which search has seen a state */
    Closure *closures; /* [S] texts that can be read from a state */
    u8 *known;         /* [S] whether its closure is there */
    u8 *alike;         /* [S] one more than `alike_for`; 0: not yet asked */
} Dfa;

/* Whether node k of the speller leads from state s to a class that may come there: live[s * width + k], zero before. */
WIDER void dfa_live(i32 num_states, i32 num_classes, i32 width, const i32 *delta, const u8 *reach, u8 *live) {
    u64 *below = malloc(sizeof(u64) * width);
    for (i32 first = 0; first < num_classes; first += 64) { /* 64 classes at a time, as bits */
        i32 last = first + 64 < num_classes ? first + 64 : num_classes;
        for (i32 k = 0; k < width; k++) {
            below[k] = 0;
            for (i32 c = first; c < last; c++) below[k] |= (u64)(c && reach[(i64)k * num_classes + c]) << (c - first);
        }
        for (i32 s = 0; s < num_states; s++) {
            const i32 *row = delta + (i64)s * num_classes;
            u64 can = 0;
            for (i32 c = first; c < last; c++) can |= (u64)(row[c] != 0) << (c - first);
            for (i32 k = 0; k < width; k++) live[(i64)s * width + k] |= (can & below[k]) != 0;
        }
    }
    free(below);
}

static i32 once(i32 *kept, i32 count, i32 class) {
    for (i32 i = 0; i < count; i++)
        if (kept[i] == class) return count;
    kept[count] = class;
    return count + 1;
}

/* `bounds`, `classes`: of the characters, in `num_ranges` ranges. */
Dfa *dfa_new(i32 num_states, i32 num_classes, i32 width, const i32 *table, const i32 *delta, const i32 *labels,
             const u8 *live, const i32 *bounds, const i32 *classes, i32 num_ranges) {
    Dfa *d = malloc(sizeof *d);
    i32 *wide = malloc(sizeof(i32) * 2 * (num_classes + 1)), *spaces = wide + num_classes + 1, num_wide = 0, num_spaces = 0;
    for (i32 r = 0; r < num_ranges; r++) { /* the classes of the characters beyond ASCII but spaces and surrogates */
        i32 low = bounds[r] < 0x80 ? 0x80 : bounds[r], high = r + 1 < num_ranges ? bounds[r + 1] : 0x110000;
        i32 others = (high > low ? high - low : 0) - overlap(low, high, 0xD800, 0xE000);
        for (int i = 0; i < NUM_SPACES; i++)
            if (low <= SPACE_CODES[i] && SPACE_CODES[i] < high) num_spaces = once(spaces, num_spaces, classes[r]), others--;
        if (others > 0) num_wide = once(wide, num_wide, classes[r]);
    }
    *d = (Dfa){num_classes, width, num_states, num_wide, num_spaces, table, delta, labels, wide, spaces, live,
               calloc(num_states, sizeof(i32)), 0, calloc(num_states, sizeof(Closure)), calloc(num_states, 1),
               calloc(num_states, 1)};
    return d;
}

void dfa_free(Dfa *d) { free((void *)d->wide), free(d->closures), free(d->known), free(d->alike), free(d->stamps), free(d); }

/* How many characters of the classes in `in` can be read from s, whatever they are; a lower bound where many states
   would have to be looked at. */
static i32 reach(Dfa *d, i32 s, const u8 *in) {
    i32 C = d->num_classes, todo[MAX_LOOKED_AT], count = 1, level = 0;
    d->stamps[s] = ++d->stamp;
    todo[0] = s;
    for (i32 depth = 0; depth < UNBOUNDED; depth++) {
        i32 end = count;
        for (; level < end; level++) {
            const i32 *row = d->delta + (i64)todo[level] * C;
            for (i32 x = 1; x < C; x++) {
                if (!in[x]) continue;
                if (!row[x]) return depth;
                if (d->stamps[row[x]] == d->stamp) continue;
                if (count == MAX_LOOKED_AT) return depth;
                d->stamps[row[x]] = d->stamp;
                todo[count++] = row[x];
            }
        }
        if (count == end) return UNBOUNDED;
    }
    return UNBOUNDED;
}

/* How many characters can be read from s, whatever they are, so that each text of so many or fewer gets the label of s; a
   lower bound where many states would have to be looked at. */
static i32 alike_for(Dfa *d, i32 s) {
    if (d->alike[s]) return d->alike[s] - 1;
    i32 C = d->num_classes, todo[MAX_LOOKED_AT], count = 1, level = 0, depth = 0, alike = C > 1;
    d->stamps[s] = ++d->stamp;
    todo[0] = s;
    for (; alike && depth < UNBOUNDED - 1 && level < count; depth += alike)
        for (i32 end = count; alike && level < end; level++)
            for (i32 x = 1; alike && x < C; x++) {
                i32 t = d->delta[(i64)todo[level] * C + x];
                if (t && d->stamps[t] == d->stamp) continue;
                alike = t && d->labels[t] == d->labels[s] && count < MAX_LOOKED_AT;
                if (alike) d->stamps[t] = d->stamp, todo[count++] = t;
            }
    if (alike) depth = UNBOUNDED - 1;
    d->alike[s] = (u8)(depth + 1);
    return depth;
}

/* `reach` for all classes. */
i32 dfa_freedom(Dfa *d, i32 s) {
    u8 *in = malloc(d->num_classes);
    memset(in, 1, d->num_classes);
    i32 found = d->num_classes > 1 ? reach(d, s, in) : 0;
    free(in);
    return found;
}

static inline i64 dfa_step(const Dfa *d, i64 leaf, u8 b) {
    i32 s = (i32)(leaf / d->width), k = (i32)(leaf % d->width), entry = d->table[k * 256 + b];
    if (entry < 0) {
        i32 target = d->delta[(i64)s * d->num_classes + ~entry];
        return target ? (i64)target * d->width : DEAD;
    }
    i64 after = leaf - k + entry;
    return d->live[after] ? after : DEAD;
}

static Closure of_classes(const Dfa *d, const u8 *in, i32 length) {
    Closure c = {{0, 0}, NON_ASCII | SPACES, (u8)length};
    for (int b = 0; b < 128; b++) {
        i32 entry = d->table[b];
        if (entry < 0 && in[~entry]) b < 64 ? (c.ascii.low |= 1ull << b) : (c.ascii.high |= 1ull << (b - 64));
    }
    for (i32 i = 0; i < d->num_wide; i++)
        if (!in[d->wide[i]]) c.flags &= ~NON_ASCII;
    for (i32 i = 0; i < d->num_spaces; i++)
        if (!in[d->spaces[i]]) c.flags &= ~SPACES;
    return c;
}

static i32 worth(const Closure *c) {
    i32 bytes = __builtin_popcountll(c->ascii.low) + __builtin_popcountll(c->ascii.high);
    return (c->length < 24 ? c->length : 24) * (bytes + (c->flags & NON_ASCII ? 64 : 0));
}

/* The best of some sets of texts that can be read from s: over the classes that keep the state; over those that may come
   here; over those that may come here and behind any of them; and so on. */
static const Closure *closure_of(Dfa *d, i32 s) {
    Closure *best = &d->closures[s];
    if (d->known[s]) return best;
    d->known[s] = 1;
    i32 C = d->num_classes;
    const i32 *row = d->delta + (i64)s * C;
    u8 *in = calloc(2 * C, 1), *next = in + C;
    for (i32 x = 1; x < C; x++) in[x] = row[x] == s;
    *best = of_classes(d, in, UNBOUNDED);
    for (i32 x = 1; x < C; x++) in[x] = row[x] != 0;
    for (int turn = 0; turn < 3; turn++) {
        Closure c = of_classes(d, in, reach(d, s, in));
        if (worth(&c) > worth(best)) *best = c;
        if (c.length >= 64) break;
        memcpy(next, in, C);
        for (i32 x = 1; x < C; x++)
            for (i32 y = 1; in[x] && y < C; y++) {
                i32 two = d->delta[(i64)row[x] * C + y];
                next[y] &= two != 0;
                for (i32 z = 1; turn && two && in[y] && z < C; z++) next[z] &= d->delta[(i64)two * C + z] != 0;
            }
        memcpy(in, next, C);
    }
    free(in);
    return best;
}

void dfa_closure(Dfa *d, i32 s, Closure *out) { *out = *closure_of(d, s); }

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
    c->bytes = calloc(512 + count, 1); /* by byte; then the bytes themselves */
    memcpy(c->bytes + 512, bytes, count);
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

/* Meet contexts ahead of their use, breadth-first from `state`: up to `limit` are looked at, and up to `new` questions asked
   of those that are not known. Returns how many were asked, or FAILED. */
i64 machine_explore(Machine *m, i64 state, i64 limit, i64 new) {
    i64 size = 4 * limit + 64, count = 0, asked = 0, *todo = malloc(sizeof(i64) * size), seen_size = 0;
    u8 *seen = 0;
    todo[count++] = state >> 32;
    for (i64 i = 0; i < count && i < limit; i++) {
        i64 number = todo[i], num_targets = 0;
        if (number >= m->num_contexts || !m->contexts[number].kind) {
            if (asked == new) break;
            asked++;
            if (m->resolve(number, -1) == FAILED) {
                asked = FAILED;
                break;
            }
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
            else if (c.kind == OPEN_NAME && k == 1) continue; /* below a name that nobody declared there is no end */
            else {
                if (m->contexts[number].targets[k] == UNKNOWN && asked++ == new) {
                    free(todo), free(seen);
                    return new;
                }
                if ((target = leave(m, number, (i32)k)) == FAILED) {
                    free(todo), free(seen);
                    return FAILED;
                }
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
    return asked;
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
            i32 child = name_child(c->names, node, b);
            if (b == '"' && child < 0) /* with a child it is the name's own, behind a backslash */
                return c->names->end[node] >= 0 && c->outcomes[place + 1] > c->outcomes[place] ? leave(m, number, place) : DEAD;
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

/* Where masks are put together: `row` is zero between calls. Tokens with a double quote are in `quoted`; those with plain
   text before the first, of at most `max_plain` characters, are also in `behind`, from that quote on, and the others in
   `odd`. */
typedef struct {
    Trie *whole, *quoted, *behind, *odd;
    i64 max_plain;
    i32 *row, *values;
    i64 *words;
    const i32 *ends;
    i32 num_ends;
} Scratch;

enum { QUOTED = 1, WITH_ENDS = 2 };

static inline i32 mark(const Trie *t, i32 from, i32 to, const Scratch *at, i32 count) {
    for (i32 k = from; k < to; k++) {
        i32 token = t->tokens[k], word = token >> 5;
        if (!at->row[word]) at->words[count++] = word;
        at->row[word] |= (i32)(1u << (token & 31));
    }
    return count;
}

static i32 gather(const Scratch *at, i32 count) {
    for (i32 i = 0; i < count; i++) at->values[i] = at->row[at->words[i]], at->row[at->words[i]] = 0;
    return count;
}

/* Whether plain texts, whatever they are, make no difference to what follows the end of the string at `state`. */
static int is_free(const Machine *m, i64 state, i32 max_plain) {
    const Context *c = &m->contexts[state >> 32];
    i64 leaf = state & 0xFFFFFFFFll;
    if (c->kind == OPEN_NAME) leaf -= c->base;
    else if (c->kind != STRING) return 0;
    return leaf >= 0 && leaf % c->dfa->width == 0 && alike_for(c->dfa, (i32)(leaf / c->dfa->width)) >= max_plain;
}

#define FEW 12

/* The bytes that may come at `state` and maybe a few others, where there are at most FEW and that is known; else NULL. */
static const u8 *few_bytes(Machine *m, i64 state, i32 *count) {
    i64 number = state >> 32, leaf = state & 0xFFFFFFFFll;
    if (number >= m->num_contexts) return 0;
    const Context *c = &m->contexts[number];
    if (c->kind == TEXT) {
        *count = 1;
        return c->bytes + leaf;
    }
    if (c->kind == MOVES && c->length <= FEW) {
        *count = c->length;
        return c->bytes + 512;
    }
    if (c->kind == NAME && c->names->end[leaf] < 0 && c->names->first[leaf + 1] - c->names->first[leaf] <= FEW) {
        *count = c->names->first[leaf + 1] - c->names->first[leaf];
        return c->names->byte + c->names->first[leaf];
    }
    return 0;
}

/* Adds the words of the tokens of `t` that can be read from `state`, but for some of those in `known` (NULL: none).
   Returns the number of words so far, or FAILED. */
static i32 walk(Machine *m, const Scratch *at, const Trie *t, i64 state, const Closure *known, i32 count) {
    i32 top = 1;
    t->nodes[0] = 0, t->states[0] = state;
    while (top) {
        i32 node = t->nodes[--top];
        state = t->states[top];
        i32 i = t->children[node] - 1, last = t->children[node + 1], few = FEW;
        const u8 *bytes = last - i > FEW ? few_bytes(m, state, &few) : 0;
        while (bytes ? few-- > 0 : ++i < last) {
            if (bytes) { /* so few may come that they are looked for */
                const u8 *found = memchr(t->bytes + t->children[node], *bytes++, last - t->children[node]);
                if (!found) continue;
                i = (i32)(found - t->bytes);
            }
            if (known && covers(known, &t->contents[i])) continue;
            i64 after = step(m, state, t->bytes[i]);
            if (after == DEAD) continue;
            if (after < 0) {
                gather(at, count);
                return FAILED;
            }
            const Span *s = &t->spans[i];
            if (s->own == s->below) {
                count = mark(t, s->tokens, s->own, at, count);
                continue;
            }
            const Closure *c = closure_at(m, after);
            if (c && covers(c, &t->contents[i])) {
                count = mark(t, s->tokens, s->below, at, count);
                continue;
            }
            count = mark(t, s->tokens, s->own, at, count);
            t->nodes[top] = i, t->states[top++] = after;
        }
    }
    return count;
}

/* The words of the tokens that can be read from `state`, but for some of those in `known` (NULL: none).
   Returns the number of words, or FAILED. */
i32 machine_mask(Machine *m, const Scratch *at, i64 state, int flags, const Closure *known) {
    i32 count = 0;
    if (flags & QUOTED && at->behind && is_free(m, state, (i32)at->max_plain)) {
        count = walk(m, at, at->behind, state, 0, count);
        if (count >= 0) count = walk(m, at, at->odd, state, 0, count);
    } else {
        count = walk(m, at, flags & QUOTED ? at->quoted : at->whole, state, known, count);
    }
    if (count < 0) return FAILED;
    for (i32 k = 0; flags & WITH_ENDS && k < at->num_ends; k++) {
        i32 word = at->ends[k] >> 5;
        if (!at->row[word]) at->words[count++] = word;
        at->row[word] |= (i32)(1u << (at->ends[k] & 31));
    }
    return gather(at, count);
}

/* The same for a character automaton alone. */
i32 dfa_mask(Dfa *d, const Scratch *at, i64 state) {
    const Trie *t = at->whole;
    i32 count = 0, top = 1;
    t->nodes[0] = 0, t->states[0] = state;
    while (top) {
        i32 node = t->nodes[--top];
        state = t->states[top];
        for (i32 i = t->children[node]; i < t->children[node + 1]; i++) {
            i64 after = dfa_step(d, state, t->bytes[i]);
            if (after < 0) continue;
            const Span *s = &t->spans[i];
            int all = s->own == s->below ||
                      (after % d->width == 0 && covers(closure_of(d, (i32)(after / d->width)), &t->contents[i]));
            count = mark(t, s->tokens, all ? s->below : s->own, at, count);
            if (!all) t->nodes[top] = i, t->states[top++] = after;
        }
    }
    return gather(at, count);
}

/* For each token the state it leads to; `out` holds what it is where the token cannot be read. */
void dfa_states(Dfa *d, const Trie *t, i64 state, i64 *out) {
    i32 top = 1;
    t->nodes[0] = 0, t->states[0] = state;
    while (top) {
        i32 node = t->nodes[--top];
        state = t->states[top];
        for (i32 i = t->children[node]; i < t->children[node + 1]; i++) {
            i64 after = dfa_step(d, state, t->bytes[i]);
            if (after < 0) continue;
            for (i32 k = t->spans[i].tokens; k < t->spans[i].own; k++) out[t->tokens[k]] = after;
            if (t->spans[i].own < t->spans[i].below) t->nodes[top] = i, t->states[top++] = after;
        }
    }
}

/* Whether more than `many` bytes can be read from `state`. */
int dfa_is_wide(Dfa *d, i64 state, i32 many) {
    i32 count = 0;
    for (int b = 0x7F; b >= 0 && count <= many; b--) count += dfa_step(d, state, (u8)b) >= 0; /* letters come first */
    for (int b = 0x80; b < 256 && count <= many; b++) count += dfa_step(d, state, (u8)b) >= 0;
    return count > many;
}

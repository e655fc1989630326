/* Masks in compiled form: one depth-first walk over the vocabulary's tree and an automaton at once.

   The automaton is a table of contexts (`frames.c`). Nothing here allocates inside a walk but what `step` asks for. */

#include "walk.h"

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

/* `bounds`, `classes`: of the characters, in `num_ranges` ranges. `usual`: the number of the alphabet of all characters in this
   spelling, or NONE. */
Dfa *dfa_new(i32 num_states, i32 num_classes, i32 width, const i32 *table, const i32 *delta, const i32 *labels,
             const u8 *live, const i32 *bounds, const i32 *classes, i32 num_ranges, i32 usual) {
    Dfa *d = malloc(sizeof *d);
    i32 *wide = malloc(sizeof(i32) * 2 * (num_classes + 1)), *spaces = wide + num_classes + 1, num_wide = 0, num_spaces = 0;
    for (i32 r = 0; r < num_ranges; r++) { /* the classes of the characters beyond ASCII but spaces and surrogates */
        i32 low = bounds[r] < 0x80 ? 0x80 : bounds[r], high = r + 1 < num_ranges ? bounds[r + 1] : 0x110000;
        i32 others = (high > low ? high - low : 0) - overlap(low, high, 0xD800, 0xE000);
        for (int i = 0; i < NUM_SPACES; i++)
            if (low <= SPACE_CODES[i] && SPACE_CODES[i] < high) num_spaces = once(spaces, num_spaces, classes[r]), others--;
        if (others > 0) num_wide = once(wide, num_wide, classes[r]);
        i32 end = r + 1 < num_ranges ? bounds[r + 1] : 0x110000;
        if (!classes[r] != (0xD800 <= bounds[r] && end <= 0xE000)) usual = NONE;
    }
    *d = (Dfa){num_classes, width, num_states, num_wide, num_spaces, table, delta, labels, wide, spaces, live,
               calloc(num_states, sizeof(i32)), 0, calloc(num_states, sizeof(Closure)), calloc(num_states, 1),
               calloc(num_states, 1), calloc(num_states, sizeof(i32)), usual};
    return d;
}

void dfa_free(Dfa *d) {
    free((void *)d->wide), free(d->closures), free(d->known), free(d->alike), free(d->freedom), free(d->few);
    free(d->stamps), free(d);
}

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
    if (d->freedom[s]) return d->freedom[s] - 1;
    u8 *in = malloc(d->num_classes);
    memset(in, 1, d->num_classes);
    i32 found = d->num_classes > 1 ? reach(d, s, in) : 0;
    free(in);
    d->freedom[s] = (i32)(found + 1);
    return found;
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

/* From the classes in `in`, all of which may come at s, those are taken out one by one behind which others may not come, the
   one first that shuts out most for what it is worth. */
static void without_spoilers(const Dfa *d, i32 s, u8 *in) {
    i32 C = d->num_classes, *weight = calloc(C, sizeof(i32));
    for (int b = 0; b < 128; b++)
        if (d->table[b] < 0) weight[~d->table[b]] += 2;
    for (i32 i = 0; i < d->num_wide; i++) weight[d->wide[i]] += 32;
    for (;;) {
        i32 worst = 0, most = 0;
        for (i32 x = 1; x < C; x++) {
            const i32 *row = d->delta + (i64)d->delta[(i64)s * C + x] * C;
            i32 lost = 0;
            for (i32 y = 1; in[x] && y < C; y++) lost += in[y] && !row[y] ? weight[y] + 1 : 0;
            lost = lost * 64 / (weight[x] + 1);
            if (lost > most) most = lost, worst = x;
        }
        if (!worst) break;
        in[worst] = 0;
    }
    free(weight);
}

/* The best of some sets of texts that can be read from s: over the classes that keep the state; over those that may come
   here, but for some behind which others may not; over those that may come here; over those that may come here and behind any
   of them; and so on. */
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
    memcpy(next, in, C);
    without_spoilers(d, s, next);
    Closure freed = of_classes(d, next, reach(d, s, next));
    if (worth(&freed) > worth(best)) *best = freed;
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

/* Whether more than `many` bytes can be read from `state`. */
int dfa_is_wide(Dfa *d, i64 state, i32 many) {
    i32 count = 0;
    for (int b = 0x7F; b >= 0 && count <= many; b--) count += dfa_step(d, state, (u8)b) >= 0; /* letters come first */
    for (int b = 0x80; b < 256 && count <= many; b++) count += dfa_step(d, state, (u8)b) >= 0;
    return count > many;
}

/* Masks */

/* The closure of a state between two characters of a text; NULL elsewhere. */
static inline const Closure *closure_at(const Machine *m, i64 state) {
    const Context *c = &m->contexts[state >> 32];
    i64 leaf = state & 0xFFFFFFFFll;
    if ((state >> 32) >= m->num_contexts || !c->dfa) return 0;
    leaf -= c->base;
    return leaf < 0 || leaf % c->dfa->width ? 0 : closure_of(c->dfa, (i32)(leaf / c->dfa->width));
}

/* Where masks are put together: `row` is zero between calls. Tokens with a double quote are in `quoted`; those with plain
   text before the first, of at most `max_plain` characters, are also in `behind`, from that quote on, and the others in
   `odd`. `shared`: rows that masks may begin with: for each alphabet that is usual, of the texts of up to 0, 1, ...
   `max_length` characters; then of `closures`. */
typedef struct {
    Trie *whole, *quoted, *behind, *odd;
    i64 max_plain;
    i32 *row, *values;
    i64 *words;
    const i32 *ends;
    const i32 **shared;
    const Closure *closures;
    i32 num_ends, num_closures, max_length;
    i32 base;        /* of the last mask: a row of `shared`; NONE, or CLOSURE: that of */
    Closure closure;
} Scratch;

#define CLOSURE (-2)

static inline i32 mark(const Trie *t, i32 from, i32 to, const Scratch *at, i32 count) {
    for (i32 k = from; k < to; k++) {
        i32 token = t->tokens[k], word = token >> 5;
        if (!at->row[word]) at->words[count++] = word;
        at->row[word] |= (i32)(1u << (token & 31));
    }
    return count;
}

static i32 gather(const Scratch *at, i32 count) {
    const i32 *base = at->base >= 0 ? at->shared[at->base] : 0;
    for (i32 i = 0; i < count; i++) {
        i64 word = at->words[i];
        at->values[i] = at->row[word] | (base ? base[word] : 0), at->row[word] = 0;
    }
    return count;
}

/* Whether plain texts, whatever they are, make no difference to what follows the end of the string at `state`. */
static int is_free(const Machine *m, i64 state, i32 max_plain) {
    const Context *c = &m->contexts[state >> 32];
    i64 leaf = (state & 0xFFFFFFFFll) - c->base;
    return leaf >= 0 && leaf % c->dfa->width == 0 && alike_for(c->dfa, (i32)(leaf / c->dfa->width)) >= max_plain;
}

#define MANY_CHILDREN 12

/* Adds the words of the tokens of `t` that can be read from `state`, but for some of those in `known` (NULL: none).
   Returns the number of words so far, or FAILED. */
static i32 walk(Machine *m, const Scratch *at, const Trie *t, i64 state, const Closure *known, i32 count) {
    i32 top = 1;
    t->nodes[0] = 0, t->states[0] = state;
    while (top) {
        i32 node = t->nodes[--top];
        state = t->states[top];
        i32 i = t->children[node] - 1, last = t->children[node + 1];
        u8 bytes[FEW];
        i32 few = last - i > MANY_CHILDREN ? few_bytes(m, state, bytes) : NONE, next = 0;
        const Context *in = (state >> 32) < m->num_contexts ? &m->contexts[state >> 32] : 0;
        Dfa *inside = in && in->how == STRING ? in->dfa : 0; /* no byte but a quote leads elsewhere */
        i64 base = state & ~0xFFFFFFFFll, leaf = state & 0xFFFFFFFFll;
        while (few >= 0 ? next < few : ++i < last) {
            if (few >= 0) { /* so few may come that they are looked for */
                const u8 *found = memchr(t->bytes + t->children[node], bytes[next++], last - t->children[node]);
                if (!found) continue;
                i = (i32)(found - t->bytes);
            }
            if (known && covers(known, &t->contents[i])) continue;
            i64 after;
            if (inside && t->bytes[i] != '"') {
                if ((after = dfa_step(inside, leaf, t->bytes[i])) < 0) continue;
                after |= base;
            } else after = machine_step(m, state, t->bytes[i]);
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

static const i32 LENGTHS[] = {255, 32, 16, 8, 4}; /* to which those of closures are rounded down, so that they share rows */
#define WIDE 24         /* string states with more moves than this have a row that is shared */
#define FREE_ENOUGH 4   /* characters; with fewer to come, most tokens would be looked at */
#define MANY_BYTES 10

/* A shared row of tokens that can be read from state `leaf` inside a text goes into `at->base`. Returns what it leaves out:
   with UNQUOTED no token without a double quote; with KNOWN none in `at->closure`. */
enum { ALL, UNQUOTED, KNOWN };

static int choose_base(Scratch *at, Dfa *d, i64 leaf) {
    i32 s = (i32)(leaf / d->width);
    if (leaf % d->width || !dfa_is_wide(d, leaf, WIDE)) return ALL;
    if (d->alphabet >= 0 && at->shared) {
        i32 freedom = dfa_freedom(d, s), first = d->alphabet * (at->max_length + 1);
        if (freedom >= at->max_length || d->num_classes == 2) {
            at->base = first + (freedom < at->max_length ? freedom : at->max_length);
            return UNQUOTED;
        }
        if (freedom >= FREE_ENOUGH) {
            at->base = first + freedom;
            at->closure = (Closure){{~(1ull << '"'), ~0ull}, NON_ASCII | INVALID | SPACES, (u8)freedom};
            return KNOWN;
        }
    }
    at->closure = *closure_of(d, s);
    for (int i = 0; i < 5; i++)
        if (LENGTHS[i] <= at->closure.length) {
            at->closure.length = (u8)LENGTHS[i];
            break;
        }
    const Closure *c = &at->closure;
    if (c->length < FREE_ENOUGH ||
        __builtin_popcountll(c->ascii.low) + __builtin_popcountll(c->ascii.high) < MANY_BYTES)
        return ALL;
    at->base = CLOSURE;
    for (i32 i = 0; i < at->num_closures; i++) {
        const Closure *k = &at->closures[i];
        if (k->ascii.low == c->ascii.low && k->ascii.high == c->ascii.high && k->flags == c->flags && k->length == c->length)
            at->base = 2 * (at->max_length + 1) + i;
    }
    return KNOWN;
}

/* The words of the tokens that can be read from `state`; where a shared row is chosen (`at->base`), those it leaves out and
   maybe others. `ends`: with EOS; of states of a stack that is known here. Returns the number of words and, above it, 2 + the
   row; FAILED, or PIECEMEAL. */
i64 machine_mask(Machine *m, Scratch *at, i64 state, int ends) {
    i64 number = state >> 32;
    if (!machine_define(m, number)) return FAILED;
    const Context *c = &m->contexts[number];
    i32 count = 0;
    int left_out = ALL;
    at->base = NONE;
    if (c->how == PYTHON) return PIECEMEAL;
    if (c->how == STRING || c->how == OPEN_NAME || c->how == S_KEY || (c->how == PLAIN && c->is_all)) {
        i64 leaf = (state & 0xFFFFFFFFll) - c->base;
        left_out = choose_base(at, c->dfa, leaf < 0 ? c->dfa->width : leaf);
    }
    if (left_out == UNQUOTED && at->behind && is_free(m, state, (i32)at->max_plain)) {
        count = walk(m, at, at->behind, state, 0, count);
        if (count >= 0) count = walk(m, at, at->odd, state, 0, count);
    } else {
        count = walk(m, at, left_out == UNQUOTED ? at->quoted : at->whole, state, left_out == KNOWN ? &at->closure : 0, count);
    }
    if (count < 0) return FAILED;
    if (m->table) ends = stack_accepts(m, state);
    for (i32 k = 0; ends && k < at->num_ends; k++) {
        i32 word = at->ends[k] >> 5;
        if (!at->row[word]) at->words[count++] = word;
        at->row[word] |= (i32)(1u << (at->ends[k] & 31));
    }
    return gather(at, count) | (i64)(at->base + 2) << 32;
}

/* The same for a character automaton alone. */
i32 dfa_mask(Dfa *d, Scratch *at, i64 state) {
    const Trie *t = at->whole;
    at->base = NONE;
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

/* What the files of the compiled walk share: the tree of the vocabulary, character automata, and contexts (`frames.c`). */

#pragma once
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
#define INTERNAL __attribute__((visibility("hidden"))) /* between these files alone, and without a detour */
#define DEAD (-1)
#define UNKNOWN (-2)
#define FAILED (-3)
#define PIECEMEAL (-4) /* a mask that Python has to put together */
#define NONE (-1)
#define NON_ASCII 1
#define INVALID 2
#define SPACES 4 /* separators beyond ASCII, which `.` or \S leave out */
#define UNBOUNDED 255
#define MAX_LOOKED_AT 1000
#define FEW 24 /* bytes that are looked for one by one */

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

/* Sets of texts: all over some characters, up to a length. */

typedef struct { Ascii ascii; u8 flags, length; } Closure; /* flags: other characters, and invalid bytes, that may occur */

static inline int covers(const Closure *c, const Contents *found) {
    return found->length <= c->length && !(found->flags & ~c->flags) && !(found->ascii.low & ~c->ascii.low) &&
           !(found->ascii.high & ~c->ascii.high);
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
    i32 *freedom;      /* [S] one more than `dfa_freedom`; 0: not yet asked */
    i32 alphabet;      /* of all characters, in a spelling that is usual; or NONE */
    u8 *few;           /* [S, FEW + 1] the bytes that a state takes, where that was asked; see `few_of_dfa` */
} Dfa;

/* The state after a byte, DEAD if it is not allowed. */
static inline i64 dfa_step(const Dfa *d, i64 leaf, u8 b) {
    uint32_t width = (uint32_t)d->width, s = (uint32_t)leaf / width, k = (uint32_t)leaf - s * width;
    i32 entry = d->table[k * 256 + b];
    if (entry < 0) {
        i32 target = d->delta[(i64)s * d->num_classes + ~entry];
        return target ? (i64)target * width : DEAD;
    }
    i64 after = leaf - k + entry;
    return d->live[after] ? after : DEAD;
}

/* Declared names as a tree; see `names_new`. */

typedef struct {
    i32 num_nodes, num_names;
    const i32 *first, *child, *end; /* end: the number of the name that ends there, or -1 */
    const u8 *byte;
    i32 *low, *high, *number; /* number: by place in the tree's order */
} Names;

/* Contexts; see `frames.c` */

enum { /* how a context is read */
    NOTHING, /* not known yet */
    MOVES, STRING, PLAIN, NAME, OPEN_NAME, PYTHON,
    S_NOTHING, S_TEXT, S_GAP, S_VALUE, S_NAME, S_KEY, S_OPEN_OBJECT, S_AFTER_OBJECT, S_OPEN_ARRAY, S_AFTER_ARRAY
};

typedef struct {
    u8 how, frame, is_met, is_all, owns_outcomes; /* is_all: PLAIN, and nothing comes behind it */
    i32 x;
    i64 y, parent;         /* with `frame`: what it is */
    i64 to[4];             /* where it leads; UNKNOWN until asked */
    Dfa *dfa;              /* STRING, PLAIN; of names that are not declared */
    const Names *names;    /* of names */
    i32 base, length;      /* OPEN_NAME, S_KEY: leaves from here on are the automaton's; number of moves or labels */
    const i32 *outcomes;   /* by label (0: the text may not end), or the running count of allowed names */
    i64 *targets;          /* by move, label, or place of a name; UNKNOWN until resolved */
    u8 *bytes;             /* MOVES: the number of the move + 1 by byte */
} Context;

#define ODD (-2)
/* What `Resolve` is asked, beside the state behind a text that ends with outcome >= 0: */
#define ASK_DESCRIPTION (-1)
#define ASK_VALUE (-2) /* the program of a demand */
#define ASK_MOVE (-10) /* less a byte: where it leads */

typedef struct { i32 length; u8 *bytes; } Chars;
typedef struct { Dfa *dfa; i32 num_labels; const i32 *outcomes; i64 start; } Reader;
typedef struct { i32 is_known, strings, plain, object, array, count; u8 *begins; } Value; /* begins [count]: with which bytes */
typedef struct { Names *names; i32 count, open, *first_required, *demands; u8 *possible; i32 **allowed; } Object;
typedef struct { i32 low, high, settled, prefix, *demands; u8 *inhabited; } Array;

typedef struct Machine Machine;
typedef i64 (*Resolve)(i64 context, i64 outcome);
typedef i64 (*Step)(i64 state, i64 byte);

struct Machine {
    i64 num_contexts, num_bytes; /* both read by Python */
    i64 room;
    Context *contexts;
    Resolve resolve;
    Step step;
    i32 *table; /* contexts of a stack by hash */
    u64 mask;
    Dfa *free_text;
    Chars *texts;
    const Reader **readers;
    Value *values;
    Object *objects;
    Array *arrays;
    i32 num_texts, num_readers, num_values, num_objects, num_arrays, gap;
    u8 after[4];
};

/* The state after a byte, DEAD if it is not allowed, FAILED if that could not be found out. */
INTERNAL i64 machine_step(Machine *m, i64 state, u8 b);
INTERNAL int stack_accepts(Machine *m, i64 state);
INTERNAL int machine_define(Machine *m, i64 number);
INTERNAL i32 few_bytes(Machine *m, i64 state, u8 *into);

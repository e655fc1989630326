/* Contexts: what the automaton of a schema does with a byte, and where it stands then.

   A state is `context << 32 | leaf`, as in schema/machine.py, which says what each context means. There are two sorts.
   *Described* contexts are filled in by Python when a walk first meets one (`Resolve`). Contexts of a *stack* are frames
   with a parent, interned here, so that both sides count them alike; the usual frames (`Object`, `Array`, `Value` and what
   they are made of) are read here, from tables that Python makes once for each part of a schema. What is unusual (`ODD`)
   is described, or asked for, as it is met. */

#include "walk.h"

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

static void *grown(void *array, i32 count, size_t size) { /* room for one more; doubled at each power of two */
    return count & (count - 1) ? array : realloc(array, size * (count ? 2 * (size_t)count : 1));
}

/* Declared names as a tree: children of node n are [first[n], first[n + 1]). In the tree's order, the names below a node
   are consecutive: [low[n], high[n]). */

static Names *in_order(i32 num_nodes, i32 *first, i32 *child, i32 *end, u8 *byte) {
    Names *n = malloc(sizeof *n);
    i32 *space = malloc(sizeof(i32) * 5 * num_nodes), *todo = space + 3 * num_nodes, top = 0; /* 2: each node comes twice */
    *n = (Names){num_nodes, 0, first, child, end, byte, space, space + num_nodes, space + 2 * num_nodes};
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

/* The tree of `count` names, which are `lengths[i]` bytes each in `text`; those of length -1 are left out. Nodes are numbered
   as `NameTrie` does it: as they are made. */
Names *names_new(i32 count, const i32 *lengths, const u8 *text) {
    i32 size = 1, num = 1;
    for (i32 i = 0; i < count; i++) size += lengths[i] > 0 ? lengths[i] : 0;
    i32 *down = malloc(sizeof(i32) * size * 4), *next = down + size, *last = next + size, *many = last + size;
    u8 *bytes = malloc(size);
    i32 *end = malloc(sizeof(i32) * size);
    down[0] = -1, many[0] = 0, end[0] = -1;
    for (i32 i = 0; i < count; i++) {
        if (lengths[i] < 0) continue;
        i32 node = 0;
        for (i32 k = 0; k < lengths[i]; k++) {
            i32 found = down[node];
            while (found >= 0 && bytes[found] != text[k]) found = next[found];
            if (found < 0) {
                found = num++;
                bytes[found] = text[k], down[found] = next[found] = -1, end[found] = -1, many[found] = 0;
                if (down[node] < 0) down[node] = found;
                else next[last[node]] = found;
                last[node] = found, many[node]++;
            }
            node = found;
        }
        end[node] = i;
        text += lengths[i];
    }
    i32 *first = malloc(sizeof(i32) * (2 * num + 1)), *child = first + num + 1;
    u8 *byte = malloc(num);
    first[0] = 0;
    for (i32 n = 0; n < num; n++) {
        i32 at = first[n];
        for (i32 c = down[n]; c >= 0; c = next[c]) child[at] = c, byte[at++] = bytes[c];
        first[n + 1] = at;
    }
    free(down), free(bytes);
    return in_order(num, first, child, realloc(end, sizeof(i32) * num), byte);
}

void names_free(Names *n) {
    free(n->low), free((void *)n->first), free((void *)n->end), free((void *)n->byte), free(n);
}

static i32 name_child(const Names *n, i32 node, u8 b) {
    for (i32 i = n->first[node]; i < n->first[node + 1]; i++)
        if (n->byte[i] == b) return n->child[i];
    return -1;
}

/* Machines */

Machine *machine_new(Resolve resolve, Step step) {
    Machine *m = calloc(1, sizeof *m);
    m->resolve = resolve, m->step = step;
    return m;
}

static void forget(Context *c) {
    free(c->targets), free(c->bytes);
    if (c->owns_outcomes) free((void *)c->outcomes);
}

void machine_free(Machine *m) {
    for (i64 i = 0; i < m->num_contexts; i++) forget(&m->contexts[i]);
    for (i32 i = 0; i < m->num_objects; i++) {
        Object *o = &m->objects[i];
        for (i32 at = 0; at <= o->count; at++) free(o->allowed[at]);
        names_free(o->names), free(o->first_required), free(o->allowed);
    }
    for (i32 i = 0; i < m->num_arrays; i++) free(m->arrays[i].demands);
    for (i32 i = 0; i < m->num_texts; i++) free(m->texts[i].bytes);
    for (i32 i = 0; i < m->num_values; i++) free(m->values[i].begins);
    free(m->contexts), free(m->table), free(m->objects), free(m->arrays), free(m->texts), free(m->values), free(m->readers);
    free(m);
}

static void make_room(Machine *m, i64 number) {
    if (number < m->room) return;
    i64 room = number + 1 + number / 2 + 16;
    m->contexts = realloc(m->contexts, room * sizeof(Context));
    memset(m->contexts + m->room, 0, (room - m->room) * sizeof(Context));
    m->num_bytes += (room - m->room) * (i64)sizeof(Context);
    m->room = room;
}

static Context *fresh(Machine *m, i64 number, int how) {
    make_room(m, number);
    if (number >= m->num_contexts) m->num_contexts = number + 1;
    Context *c = &m->contexts[number];
    forget(c);
    c->targets = 0, c->bytes = 0, c->outcomes = 0, c->owns_outcomes = 0;
    c->how = (u8)how;
    return c;
}

/* Described contexts */

void define_python(Machine *m, i64 number) { fresh(m, number, PYTHON); }

void define_moves(Machine *m, i64 number, i32 count, const u8 *bytes, const i64 *targets) {
    Context *c = fresh(m, number, MOVES);
    m->num_bytes += 550 + 9 * count;
    c->length = count;
    c->targets = copied(targets, sizeof(i64) * count);
    c->bytes = calloc(512 + count, 1); /* by byte; then the bytes themselves */
    memcpy(c->bytes + 512, bytes, count);
    for (i32 i = 0; i < count; i++) { /* two bytes each: 256 moves do not fit one */
        c->bytes[2 * bytes[i]] = (u8)((i + 1) & 255);
        c->bytes[2 * bytes[i] + 1] = (u8)((i + 1) >> 8);
    }
}

void define_leaf(Machine *m, i64 number, int is_string, Dfa *dfa, i32 num_labels, const i32 *outcomes) {
    Context *c = fresh(m, number, is_string ? STRING : PLAIN);
    m->num_bytes += 50 + 12 * num_labels;
    c->dfa = dfa;
    c->length = num_labels;
    c->outcomes = copied(outcomes, sizeof(i32) * num_labels), c->owns_outcomes = 1;
    c->targets = unknown(num_labels);
    c->is_all = !is_string;
    for (i32 i = 0; i < num_labels; i++) c->is_all &= !outcomes[i];
}

/* `allowed`: a bit for each name's number, as little-endian bytes. */
void define_name(Machine *m, i64 number, const Names *names, const u8 *allowed, i32 num_bytes) {
    Context *c = fresh(m, number, NAME);
    i32 count = names->num_names, *running = malloc(sizeof(i32) * (count + 1));
    m->num_bytes += 50 + 12 * count;
    c->names = names;
    c->length = count;
    c->targets = unknown(count);
    running[0] = 0;
    for (i32 i = 0; i < count; i++) {
        i32 bit = names->number[i];
        running[i + 1] = running[i] + (bit >> 3 < num_bytes && allowed[bit >> 3] >> (bit & 7) & 1);
    }
    c->outcomes = running, c->owns_outcomes = 1;
}

void define_open_name(Machine *m, i64 number, const Names *names, i32 base, Dfa *dfa, i32 num_labels, const i32 *outcomes) {
    define_leaf(m, number, 1, dfa, num_labels, outcomes);
    Context *c = &m->contexts[number];
    c->how = OPEN_NAME;
    c->names = names;
    c->base = base;
}

/* The stack */

enum { /* frames, with their x and y; schema/native_stack.py has the same list */
    F_END, F_ROOT, F_ITEM_ROOT,
    F_TEXT,      /* text; the leaf of the parent that comes behind it */
    F_GAP,       /* characters of whitespace that may still come; leaf of the parent */
    F_VALUE,     /* demand */
    F_STRING,    /* reader */
    F_PLAIN,     /* reader */
    F_NAME,      /* object; next property */
    F_KEY,       /* object; next property */
    F_OPEN_OBJECT, F_OBJECT_NAME, F_OBJECT_KEY, F_OBJECT_VALUE, F_OBJECT_AFTER, /* object; next property (, demand) */
    F_OPEN_ARRAY, F_ARRAY_VALUE, F_ARRAY_AFTER,                                 /* array; items (, demand) */
    F_ODD        /* number of the frame in Python */
};

static const u8 HOW[] = {S_NOTHING, S_NOTHING, S_NOTHING, S_TEXT, S_GAP, S_VALUE, STRING, PLAIN, S_NAME, S_KEY, S_OPEN_OBJECT,
                         S_NOTHING, S_NOTHING, S_NOTHING, S_AFTER_OBJECT, S_OPEN_ARRAY, S_NOTHING, S_AFTER_ARRAY, NOTHING};

static inline u64 hash_of(u8 frame, i32 x, i64 y, i64 parent) {
    u64 h = ((u64)(uint32_t)x << 8 | frame) * 0x9E3779B97F4A7C15ull;
    h = (h ^ (h >> 29) ^ (u64)y) * 0xBF58476D1CE4E5B9ull;
    h = (h ^ (h >> 31) ^ (u64)parent) * 0x94D049BB133111EBull;
    return h ^ h >> 32;
}

static void enlarge(Machine *m) {
    m->mask = m->mask ? 2 * m->mask + 1 : 63;
    free(m->table);
    m->table = malloc(sizeof(i32) * (m->mask + 1));
    memset(m->table, 0xFF, sizeof(i32) * (m->mask + 1));
    m->num_bytes += 2 * (i64)(m->mask + 1);
    for (i32 i = 0; i < m->num_contexts; i++) {
        const Context *c = &m->contexts[i];
        u64 at = hash_of(c->frame, c->x, c->y, c->parent) & m->mask;
        while (m->table[at] >= 0) at = (at + 1) & m->mask;
        m->table[at] = i;
    }
}

/* The context of a frame on `parent`; made if it is not there. */
i64 stack_push(Machine *m, i32 frame, i32 x, i64 y, i64 parent) {
    u64 at = hash_of((u8)frame, x, y, parent) & m->mask;
    for (; m->table[at] >= 0; at = (at + 1) & m->mask) {
        const Context *c = &m->contexts[m->table[at]];
        if (c->y == y && c->parent == parent && c->x == x && c->frame == frame) return m->table[at];
    }
    i64 number = m->num_contexts++;
    make_room(m, number);
    Context *c = &m->contexts[number];
    c->frame = (u8)frame, c->how = HOW[frame], c->x = x, c->y = y, c->parent = parent;
    for (int i = 0; i < 4; i++) c->to[i] = UNKNOWN;
    if (frame == F_STRING || frame == F_PLAIN) {
        const Reader *r = m->readers[x];
        c->dfa = r->dfa, c->outcomes = r->outcomes, c->length = r->num_labels;
    } else if (frame == F_NAME || frame == F_KEY) {
        const Object *o = &m->objects[x];
        c->names = o->names, c->dfa = m->free_text, c->base = o->names->num_nodes;
    }
    m->table[at] = (i32)number;
    if (2 * (u64)m->num_contexts > m->mask) enlarge(m);
    return number;
}

void stack_read(const Machine *m, i64 number, i64 *out) {
    const Context *c = &m->contexts[number];
    out[0] = c->frame, out[1] = c->x, out[2] = c->y, out[3] = c->parent;
}

i32 stack_text(Machine *m, i32 length, const u8 *bytes) {
    m->texts = grown(m->texts, m->num_texts, sizeof *m->texts);
    m->texts[m->num_texts] = (Chars){length, copied(bytes, length)};
    return m->num_texts++;
}

/* The machine gets a stack. `free_text`: reads any name. Texts: the comma without its first byte, the same with the quote of
   a name behind it, that quote alone, the colon. */
void stack_new(Machine *m, Dfa *free_text, i32 gap, i32 comma_length, const u8 *comma, i32 colon_length, const u8 *colon) {
    u8 *quoted = malloc(comma_length);
    m->free_text = free_text, m->gap = gap, m->after[0] = comma[0], m->after[1] = '}', m->after[2] = ']';
    memcpy(quoted, comma + 1, comma_length - 1);
    quoted[comma_length - 1] = '"';
    stack_text(m, comma_length - 1, comma + 1), stack_text(m, comma_length, quoted);
    stack_text(m, 1, (const u8 *)"\""), stack_text(m, colon_length, colon);
    free(quoted);
    enlarge(m);
}

enum { REST_OF_COMMA, COMMA_AND_QUOTE, ONE_QUOTE, COLON };

Reader *reader_new(Dfa *dfa, i32 num_labels, const i32 *outcomes, i64 start) {
    Reader *r = malloc(sizeof *r);
    *r = (Reader){dfa, num_labels, copied(outcomes, sizeof(i32) * num_labels), start};
    return r;
}

void reader_free(Reader *r) { free((void *)r->outcomes), free(r); }

i32 stack_reader(Machine *m, const Reader *reader) {
    m->readers = grown(m->readers, m->num_readers, sizeof *m->readers);
    m->readers[m->num_readers] = reader;
    return m->num_readers++;
}

/* What a value that meets demand number `demand` may begin with: readers, an object and an array by number; NONE, or ODD where
   Python has to say. */
void stack_value(Machine *m, i32 demand, i32 strings, i32 plain, i32 object, i32 array) {
    if (demand >= m->num_values) {
        i32 room = 2 * demand + 8;
        m->values = realloc(m->values, room * sizeof(Value));
        memset(m->values + m->num_values, 0, (room - m->num_values) * sizeof(Value));
        m->num_values = room;
    }
    Value *v = &m->values[demand];
    u8 bytes[256 + 3];
    i32 count = 0;
    if (strings >= 0) bytes[count++] = '"';
    if (object != NONE) bytes[count++] = '{';
    if (array != NONE) bytes[count++] = '[';
    for (int b = 0; plain >= 0 && b < 256; b++)
        if (dfa_step(m->readers[plain]->dfa, m->readers[plain]->start, (u8)b) >= 0) bytes[count++] = (u8)b;
    *v = (Value){1, strings, plain, object, array, count, copied(bytes, count)};
}

/* An object that is read along one plan whose properties come in order. [count]: `lengths` and `text` as for `names_new`,
   `possible`; [count + 1]: `first_required`, `demands`, the last of them that of undeclared names. `open`: these may come; ODD:
   and Python says how they are read. */
i32 stack_object(Machine *m, i32 count, const i32 *lengths, const u8 *text, const u8 *possible, const i32 *first_required,
                 const i32 *demands, i32 open) {
    m->objects = grown(m->objects, m->num_objects, sizeof *m->objects);
    Object *o = &m->objects[m->num_objects];
    i32 *space = malloc(2 * sizeof(i32) * (count + 1) + count);
    *o = (Object){names_new(count, lengths, text), count, open, space, space + count + 1, (u8 *)(space + 2 * (count + 1)),
                  calloc(count + 1, sizeof(i32 *))};
    memcpy(o->first_required, first_required, sizeof(i32) * (count + 1));
    memcpy(o->demands, demands, sizeof(i32) * (count + 1));
    for (i32 i = 0; i < count; i++) o->possible[i] = possible[i] && lengths[i] >= 0;
    m->num_bytes += 300 + 20 * (i64)count + 40 * (i64)o->names->num_nodes;
    return m->num_objects++;
}

/* An array that is read along one plan in which nothing is counted but items. [prefix + 1]: `demands`, and whether they can be
   met. `high` and `settled` as in plans.py; -1: no end. */
i32 stack_array(Machine *m, i32 low, i32 high, i32 settled, i32 prefix, const i32 *demands, const u8 *inhabited) {
    m->arrays = grown(m->arrays, m->num_arrays, sizeof *m->arrays);
    i32 *space = malloc(sizeof(i32) * (prefix + 1) + prefix + 1);
    memcpy(space, demands, sizeof(i32) * (prefix + 1));
    memcpy(space + prefix + 1, inhabited, prefix + 1);
    m->arrays[m->num_arrays] = (Array){low, high, settled, prefix, space, (u8 *)(space + prefix + 1)};
    return m->num_arrays++;
}

/* What frames lead to */

static i64 ask(Machine *m, i64 number, i64 outcome) { return m->resolve(number, outcome); }

static i64 text_before(Machine *m, i32 text, i64 state) {
    return m->texts[text].length ? stack_push(m, F_TEXT, text, state & 0xFFFFFFFFll, state >> 32) << 32 : state;
}

static i64 gap_before(Machine *m, i64 state) {
    return m->gap ? stack_push(m, F_GAP, m->gap, state & 0xFFFFFFFFll, state >> 32) << 32 : state;
}

/* The state behind a value on `parent`; UNKNOWN where Python has to say. */
static i64 deliver(Machine *m, i64 parent) {
    Context c = m->contexts[parent];
    if (c.frame == F_OBJECT_VALUE) return gap_before(m, stack_push(m, F_OBJECT_AFTER, c.x, c.y >> 32, c.parent) << 32);
    if (c.frame == F_ARRAY_VALUE) return gap_before(m, stack_push(m, F_ARRAY_AFTER, c.x, c.y >> 32, c.parent) << 32);
    return c.frame == F_ROOT ? stack_push(m, F_END, 0, 0, -1) << 32 : UNKNOWN;
}

/* The state behind a name, where property `after` is next and the value is to meet `demand`. `key`: the context below. */
static i64 after_name(Machine *m, i64 key, i32 after, i32 demand) {
    i32 object = m->contexts[key].x;
    i64 below = stack_push(m, F_OBJECT_VALUE, object, (i64)after << 32 | demand, m->contexts[key].parent);
    i64 begin = gap_before(m, stack_push(m, F_VALUE, demand, 0, below) << 32);
    return gap_before(m, text_before(m, COLON, begin));
}

static int may_come(const Object *o, i32 at, i32 property) {
    return at <= property && property <= o->first_required[at] && property < o->count && o->possible[property];
}

static int undeclared_may_come(const Object *o, i32 at) { return o->open && o->first_required[at] == o->count; }

/* The running count, in the order of the tree, of the names that may come at property `at`. */
static const i32 *allowed_names(Machine *m, Object *o, i32 at) {
    if (!o->allowed[at]) {
        i32 count = o->names->num_names, *running = o->allowed[at] = malloc(sizeof(i32) * (count + 1));
        running[0] = 0;
        m->num_bytes += 4 * (i64)count;
        for (i32 i = 0; i < count; i++) running[i + 1] = running[i] + may_come(o, at, o->names->number[i]);
    }
    return o->allowed[at];
}

/* The state behind the quote of the next name; DEAD if none may come. */
static i64 next_key(Machine *m, i64 number) {
    Context c = m->contexts[number];
    const Object *o = &m->objects[c.x];
    i32 at = (i32)c.y;
    if (undeclared_may_come(o, at))
        return stack_push(m, F_KEY, c.x, at, stack_push(m, F_OBJECT_KEY, c.x, at, c.parent)) << 32;
    for (i32 i = at; i < o->count && i <= o->first_required[at]; i++)
        if (o->possible[i]) return stack_push(m, F_NAME, c.x, at, stack_push(m, F_OBJECT_NAME, c.x, at, c.parent)) << 32;
    return DEAD;
}

static i64 object_byte(Machine *m, i64 number, u8 b) {
    Context *c = &m->contexts[number];
    int is_open = c->how == S_OPEN_OBJECT;
    Object *o = &m->objects[c->x];
    i64 target = DEAD;
    if (b == '}') {
        if (o->first_required[c->y] != o->count) return DEAD;
        if (c->to[1] != UNKNOWN) return c->to[1];
        if ((target = deliver(m, c->parent)) == UNKNOWN) target = ask(m, number, ASK_MOVE - b);
        if (target != FAILED) m->contexts[number].to[1] = target;
        return target;
    }
    if (b != (is_open ? '"' : m->after[0])) return DEAD;
    if (c->to[0] != UNKNOWN) return c->to[0];
    if (o->open == ODD && undeclared_may_come(o, (i32)c->y)) {
        target = ask(m, number, ASK_MOVE - b);
    } else if ((target = next_key(m, number)) >= 0 && !is_open) {
        target = m->gap ? text_before(m, REST_OF_COMMA, gap_before(m, text_before(m, ONE_QUOTE, target)))
                        : text_before(m, COMMA_AND_QUOTE, target);
    }
    if (target != FAILED) m->contexts[number].to[0] = target;
    return target;
}

static i32 demand_at(const Array *a, i64 items) { return a->demands[items < a->prefix ? items : a->prefix]; }

static int may_add(const Array *a, i64 items) {
    if ((a->high >= 0 && items >= a->high) || !a->inhabited[items < a->prefix ? items : a->prefix]) return 0;
    i64 after = a->high < 0 && items + 1 > a->settled ? a->settled : items + 1;
    if (after >= a->low) return 1;
    if (a->high >= 0 && a->high < a->low) return 0;
    for (i64 i = after; i < a->low && i <= a->prefix; i++)
        if (!a->inhabited[i]) return 0;
    return 1;
}

/* The state before one more item; DEAD if none may come. */
static i64 next_item(Machine *m, i64 number) {
    Context c = m->contexts[number];
    const Array *a = &m->arrays[c.x];
    if (!may_add(a, c.y)) return DEAD;
    i64 after = a->high < 0 && c.y + 1 > a->settled ? a->settled : c.y + 1;
    i32 demand = demand_at(a, c.y);
    return stack_push(m, F_VALUE, demand, 0, stack_push(m, F_ARRAY_VALUE, c.x, after << 32 | demand, c.parent)) << 32;
}

static i64 array_end(Machine *m, i64 number) {
    Context *c = &m->contexts[number];
    if (c->y < m->arrays[c->x].low) return DEAD;
    if (c->to[1] != UNKNOWN) return c->to[1];
    i64 target = deliver(m, c->parent);
    if (target == UNKNOWN) target = ask(m, number, ASK_MOVE - ']');
    if (target != FAILED) m->contexts[number].to[1] = target;
    return target;
}

/* Of an open array: the state of its first item; else that behind the comma. */
static i64 array_item(Machine *m, i64 number) {
    Context *c = &m->contexts[number];
    if (c->to[0] != UNKNOWN) return c->to[0];
    int is_open = c->how == S_OPEN_ARRAY;
    i64 target = next_item(m, number);
    if (target >= 0 && !is_open) target = text_before(m, REST_OF_COMMA, gap_before(m, target));
    return m->contexts[number].to[0] = target;
}

/* The program of a value, asked for when it is first needed; NULL if that failed. */
static const Value *value_of(Machine *m, i32 demand) {
    if ((demand >= m->num_values || !m->values[demand].is_known) && ask(m, demand, ASK_VALUE) == FAILED) return 0;
    return &m->values[demand];
}

static i64 value_byte(Machine *m, i64 number, u8 b) {
    const Value *v = value_of(m, m->contexts[number].x);
    if (!v) return FAILED;
    Context *c = &m->contexts[number];
    i64 target = DEAD, parent = c->parent;
    if (b == '"' && v->strings >= 0) {
        if (c->to[0] != UNKNOWN) return c->to[0];
        target = stack_push(m, F_STRING, v->strings, 0, parent) << 32 | m->readers[v->strings]->start;
        return m->contexts[number].to[0] = target;
    }
    if ((b == '{' && v->object != NONE) || (b == '[' && v->array != NONE)) {
        int slot = b == '{' ? 2 : 3;
        i32 which = b == '{' ? v->object : v->array;
        if (c->to[slot] != UNKNOWN) return c->to[slot];
        if (which == ODD) target = ask(m, number, ASK_MOVE - b);
        else target = gap_before(m, stack_push(m, b == '{' ? F_OPEN_OBJECT : F_OPEN_ARRAY, which, 0, parent) << 32);
        if (target != FAILED) m->contexts[number].to[slot] = target;
        return target;
    }
    if (v->plain < 0) return DEAD;
    const Reader *r = m->readers[v->plain];
    i64 after = dfa_step(r->dfa, r->start, b);
    if (after < 0) return DEAD;
    if (c->to[1] == UNKNOWN) {
        i64 inside = stack_push(m, F_PLAIN, v->plain, 0, parent) << 32;
        c = &m->contexts[number], c->to[1] = inside;
    }
    return c->to[1] | after;
}

/* The state behind a text that ends with a label, or behind the name at a place of the tree. */
static i64 leave(Machine *m, i64 number, i32 outcome) {
    Context *c = &m->contexts[number];
    if (c->how == S_NAME || c->how == S_KEY) {
        const Object *o = &m->objects[c->x];
        i32 property = c->how == S_NAME ? o->names->number[outcome] : outcome - 2;
        if (property < 0) return after_name(m, c->parent, o->count, o->demands[o->count]);
        return after_name(m, c->parent, property + 1, o->demands[property]);
    }
    if (!c->targets) { /* of a stack: where the frame below is usual, all labels lead to one state */
        if (c->to[0] != UNKNOWN) return c->to[0];
        i64 target = deliver(m, c->parent);
        c = &m->contexts[number];
        if (target != UNKNOWN) return c->to[0] = target;
        c->targets = unknown(c->length);
    }
    if (c->targets[outcome] == UNKNOWN) {
        i64 target = ask(m, number, c->how == NAME ? c->names->number[outcome] : outcome);
        if (target == FAILED) return FAILED;
        m->contexts[number].targets[outcome] = target; /* resolving may have moved the contexts */
    }
    return m->contexts[number].targets[outcome];
}

/* Whether what a context is, is known by now. */
int machine_define(Machine *m, i64 number) {
    if (number < m->num_contexts && m->contexts[number].how) return 1;
    return ask(m, number, ASK_DESCRIPTION) != FAILED;
}

/* Whether the text may end in a state of a stack; FAILED if that could not be found out. */
int stack_accepts(Machine *m, i64 state) {
    const Context *c = &m->contexts[state >> 32];
    i64 leaf = state & 0xFFFFFFFFll;
    if (c->frame == F_END) return 1;
    if (c->frame != F_PLAIN || m->contexts[c->parent].frame != F_ROOT || leaf % c->dfa->width) return 0;
    return c->outcomes[c->dfa->labels[leaf / c->dfa->width]] != 0;
}

i64 machine_step(Machine *m, i64 state, u8 b) {
    for (;;) {
        i64 number = state >> 32, leaf = state & 0xFFFFFFFFll, base = number << 32;
        if ((number >= m->num_contexts || !m->contexts[number].how) && !machine_define(m, number)) return FAILED;
        const Context *c = &m->contexts[number];
        switch (c->how) {
        case MOVES: {
            i32 move = c->bytes[2 * b] | c->bytes[2 * b + 1] << 8;
            return move ? c->targets[move - 1] : DEAD;
        }
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
        case NAME:
        case S_NAME: {
            const i32 *running = c->how == NAME ? c->outcomes : allowed_names(m, &m->objects[c->x], (i32)c->y);
            i32 node = (i32)leaf, place = c->names->low[node], child = name_child(c->names, node, b);
            if (b == '"' && child < 0) /* with a child it is the name's own, behind a backslash */
                return c->names->end[node] >= 0 && running[place + 1] > running[place] ? leave(m, number, place) : DEAD;
            if (child < 0 || running[c->names->high[child]] == running[c->names->low[child]]) return DEAD;
            return base | child;
        }
        case OPEN_NAME:
        case S_KEY: {
            i64 inner = leaf - c->base; /* below 0: a node of the tree */
            if (b == '"' && (inner < 0 || inner % c->dfa->width == 0)) {
                i32 property = inner < 0 ? c->names->end[leaf] : -1, label = property < 0 ? 1 : 2 + property;
                if (c->how == OPEN_NAME) return c->outcomes[label] ? leave(m, number, label) : DEAD;
                return property < 0 || may_come(&m->objects[c->x], (i32)c->y, property) ? leave(m, number, label) : DEAD;
            }
            if (inner < 0) {
                i32 child = name_child(c->names, (i32)leaf, b);
                if (child >= 0) return base | child;
                inner = c->dfa->width; /* the one live state of free text */
            }
            i64 after = dfa_step(c->dfa, inner, b);
            return after < 0 ? DEAD : base | (c->base + after);
        }
        case S_TEXT: {
            const Chars *text = &m->texts[c->x];
            if (text->bytes[leaf] != b) return DEAD;
            return leaf + 1 < text->length ? state + 1 : c->parent << 32 | c->y;
        }
        case S_GAP:
            if (b == ' ' || b == '\n' || b == '\r' || b == '\t') {
                if (c->x == 1) return c->parent << 32 | c->y;
                return stack_push(m, F_GAP, c->x - 1, c->y, c->parent) << 32;
            }
            state = c->parent << 32 | c->y;
            continue;
        case S_VALUE:
            return value_byte(m, number, b);
        case S_OPEN_OBJECT:
        case S_AFTER_OBJECT:
            return object_byte(m, number, b);
        case S_OPEN_ARRAY:
            if (b == ']') return array_end(m, number);
            if ((state = array_item(m, number)) < 0) return state;
            continue; /* the byte belongs to the item */
        case S_AFTER_ARRAY:
            return b == ']' ? array_end(m, number) : b == m->after[0] ? array_item(m, number) : DEAD;
        case S_NOTHING:
            return DEAD;
        default:
            return m->step(state, b);
        }
    }
}

i64 step_bytes(Machine *m, i64 state, const u8 *data, i32 length) {
    for (i32 i = 0; i < length && state >= 0; i++) state = machine_step(m, state, data[i]);
    return state;
}

static i32 add_few(const u8 *bytes, i32 count, u8 *into, i32 found) {
    if (found < 0 || found + count > FEW) return NONE;
    memcpy(into + found, bytes, count);
    return found + count;
}

/* The bytes that a character automaton takes in a state between two characters; NONE where they are many. */
static i32 few_of_dfa(Dfa *d, i64 leaf, u8 *into) {
    if (!d->few) d->few = calloc(d->num_states, FEW + 1);
    u8 *kept = d->few + (i64)(leaf / d->width) * (FEW + 1); /* [0]: 0 not yet asked, one more than their number, or 255 */
    if (!kept[0]) {
        i32 count = 0;
        for (i32 b = 0; b < 256 && count <= FEW; b++)
            if (dfa_step(d, leaf, (u8)b) >= 0 && count++ < FEW) kept[count] = (u8)b;
        kept[0] = count > FEW ? 255 : (u8)(count + 1);
    }
    return kept[0] == 255 ? NONE : add_few(kept + 1, kept[0] - 1, into, 0);
}

/* The bytes that may come at `state` and maybe a few others, in `into` [FEW]: their number, or NONE where they are many or that
   is not known. */
i32 few_bytes(Machine *m, i64 state, u8 *into) {
    i32 found = 0;
    for (;;) { /* a frame that may be over, or hold nothing, adds its bytes to those of what is behind it */
        i64 number = state >> 32, leaf = state & 0xFFFFFFFFll;
        if (number >= m->num_contexts) return NONE;
        const Context *c = &m->contexts[number];
        switch (c->how) {
        case MOVES:
            return add_few(c->bytes + 512, c->length, into, found);
        case NAME:
        case S_NAME: {
            i32 first = c->names->first[leaf];
            if (c->names->end[leaf] >= 0) found = add_few((const u8 *)"\"", 1, into, found);
            return add_few(c->names->byte + first, c->names->first[leaf + 1] - first, into, found);
        }
        case PLAIN: {
            if (leaf % c->dfa->width) return NONE;
            i32 label = c->dfa->labels[leaf / c->dfa->width];
            i32 more = found ? NONE : few_of_dfa(c->dfa, leaf, into);
            if (more < 0 || !label || !c->outcomes[label]) return more;
            if ((state = leave(m, number, label)) < 0) return state == DEAD ? more : NONE;
            found = more;
            continue;
        }
        case S_TEXT:
            return add_few(m->texts[c->x].bytes + leaf, 1, into, found);
        case S_GAP:
            found = add_few((const u8 *)" \n\r\t", 4, into, found);
            state = c->parent << 32 | c->y;
            continue;
        case S_VALUE: {
            const Value *v = value_of(m, c->x);
            return v ? add_few(v->begins, v->count, into, found) : NONE;
        }
        case S_OPEN_OBJECT:
            return add_few((const u8 *)"\"}", 2, into, found);
        case S_AFTER_OBJECT:
            return add_few(m->after, 2, into, found); /* a comma, "}", "]" */
        case S_OPEN_ARRAY:
            found = add_few((const u8 *)"]", 1, into, found);
            if ((state = array_item(m, number)) < 0) return state == DEAD ? found : NONE;
            continue;
        case S_AFTER_ARRAY:
            return add_few(m->after, 3, into, found);
        case S_NOTHING:
            return found;
        default:
            return NONE;
        }
    }
}

/* Looking ahead */

typedef struct { i64 *todo, count, size; u8 *seen; i64 num_seen; } Ahead;

static void meet(Ahead *a, i64 state) {
    i64 number = state >> 32;
    if (state < 0 || a->count == a->size) return;
    if (number >= a->num_seen) {
        i64 larger = 2 * number + 256;
        a->seen = realloc(a->seen, larger);
        memset(a->seen + a->num_seen, 0, larger - a->num_seen);
        a->num_seen = larger;
    }
    if (!a->seen[number]) a->seen[number] = 1, a->todo[a->count++] = number;
}

/* Meet all that one byte or the end of a text leads to from a context, but for names that nobody declared: below these there
   is no end. FAILED if that could not be found out. */
static int meet_targets(Machine *m, i64 number, Ahead *a) {
    Context c = m->contexts[number];
    i64 target = 0, here = number << 32;
    static const u8 USED[] = "\"{[}],-0123456789tfn";
    switch (c.how) {
    case MOVES:
        for (i32 k = 0; k < c.length; k++) meet(a, c.targets[k]);
        return 0;
    case S_TEXT:
    case S_GAP:
        meet(a, c.parent << 32);
        return 0;
    case NAME:
    case S_NAME: {
        const i32 *running = c.how == NAME ? c.outcomes : allowed_names(m, &m->objects[c.x], (i32)c.y);
        for (i32 k = 0; k < c.names->num_names && target != FAILED; k++)
            if (running[k + 1] > running[k]) meet(a, target = leave(m, number, k));
        return target == FAILED ? FAILED : 0;
    }
    case S_KEY:
        for (i32 k = (i32)c.y; k < m->objects[c.x].count; k++)
            if (may_come(&m->objects[c.x], (i32)c.y, k)) meet(a, leave(m, number, k + 2));
        return 0;
    case STRING:
    case PLAIN:
    case OPEN_NAME:
        for (i32 k = c.how == OPEN_NAME ? 2 : 1; k < c.length && target != FAILED; k++)
            if (c.outcomes[k]) meet(a, target = leave(m, number, k));
        return target == FAILED ? FAILED : 0;
    case S_VALUE:
    case S_OPEN_OBJECT:
    case S_AFTER_OBJECT:
    case S_OPEN_ARRAY:
    case S_AFTER_ARRAY:
        for (const u8 *b = USED; *b && target != FAILED; b++)
            if (*b != ',' || c.how == S_AFTER_OBJECT || c.how == S_AFTER_ARRAY)
                meet(a, target = machine_step(m, here, *b == ',' ? m->after[0] : *b));
        return target == FAILED ? FAILED : 0;
    default:
        return 0;
    }
}

/* Meet contexts ahead of their use, breadth-first from `state`: up to `limit` are looked at, and up to `new` of those that were
   not met before. Returns how many these were, or FAILED. */
i64 machine_explore(Machine *m, i64 state, i64 limit, i64 new) {
    Ahead a = {malloc(sizeof(i64) * (4 * limit + 64)), 0, 4 * limit + 64, 0, 0};
    i64 met = 0;
    meet(&a, state);
    for (i64 i = 0; i < a.count && i < limit; i++) {
        i64 number = a.todo[i];
        int is_new = number >= m->num_contexts || !m->contexts[number].is_met;
        if (is_new && met == new) break;
        met += is_new;
        if (!machine_define(m, number) || meet_targets(m, number, &a) == FAILED) {
            met = FAILED;
            break;
        }
        m->contexts[number].is_met = 1;
    }
    free(a.todo), free(a.seen);
    return met;
}

/* An engine in plain C that speaks the stdio protocol of specs/96-stdio.md: every operation but logits.

   It shares no code with flashref: a second reading of the spec, and an example. C11, libc and libm only:
       cc -O2 -std=c11 engine.c -o engine -lm
   Little-endian machines. Integers beyond 63 bits are skipped. One request at a time; its memory goes with it. */

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef long long Int;

/* --- Memory of a request, and how a request ends early --- */

typedef struct Block { struct Block *next; } Block;

static Block *blocks;
static jmp_buf request_ended;
static char ending[16], reason[256]; /* "refused" or "skip", and why */

static void end_request(const char *how, const char *format, va_list rest) {
    snprintf(ending, sizeof ending, "%s", how);
    vsnprintf(reason, sizeof reason, format, rest);
    longjmp(request_ended, 1);
}

static _Noreturn void refuse(const char *format, ...) { /* a bad argument */
    va_list rest;
    va_start(rest, format);
    end_request("refused", format, rest);
    abort();
}

static _Noreturn void skip(const char *format, ...) { /* a case that this engine does not claim to run */
    va_list rest;
    va_start(rest, format);
    end_request("skip", format, rest);
    abort();
}

static _Noreturn void misunderstand(const char *why) { /* what the protocol does not have */
    printf("{\"error\":{\"code\":\"protocol\",\"message\":\"%s\"}}\n", why);
    exit(1);
}

static Int times(Int a, Int b) { /* of sizes: neither is negative */
    if (b > 0 && a > INT64_MAX / b) skip("a size beyond 63 bits");
    return a * b;
}

static Int plus(Int a, Int b) {
    if (a > INT64_MAX - b) skip("a size beyond 63 bits");
    return a + b;
}

static void *zeros(Int count, Int size) { /* memory until the end of the request */
    Int bytes = plus(times(count, size), 16);
    Block *block = bytes < 1LL << 32 ? calloc(1, (size_t)bytes) : NULL;
    if (block == NULL) skip("no memory for %lld bytes", bytes);
    block->next = blocks;
    blocks = block;
    return (char *)block + 16;
}

static void free_all(void) {
    while (blocks != NULL) {
        Block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

/* --- JSON: parsed where it lies, strings ended by a zero --- */

typedef enum { NIL, TRUTH, INTEGER, STRING, LIST, OBJECT } Kind;

typedef struct Json {
    Kind kind;
    Int integer;        /* also the number of a list's or object's items */
    char *text;         /* of a string */
    char *key;          /* if it lies in an object */
    struct Json *first; /* of the items */
    struct Json *next;  /* in the list or object it lies in */
} Json;

static char *at; /* the next character */

static void skip_spaces(void) { at += strspn(at, " \t\r\n"); }

static void expect(char c) {
    skip_spaces();
    if (*at++ != c) misunderstand("this is not JSON");
}

static unsigned hex4(void) {
    unsigned value = 0;
    for (int i = 0; i < 4; i++, at++) {
        const char *digits = "0123456789abcdef", *digit = *at ? strchr(digits, *at | 32) : NULL;
        if (digit == NULL) misunderstand("a string has a bad escape");
        value = value * 16 + (unsigned)(digit - digits);
    }
    return value;
}

static char *put_utf8(char *to, unsigned code) {
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
    *to++ = (char)(lead[more] | code >> 6 * more);
    while (more-- > 0) *to++ = (char)(0x80 | (code >> 6 * more & 63));
    return to;
}

static char *parse_string(void) {
    expect('"');
    char *start = at, *to = at;
    while (*at != '"') {
        if ((unsigned char)*at < 32) misunderstand("a string has no end");
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        char escape = at[1];
        const char *plain = "\"\\/bfnrt", *found = escape ? strchr(plain, escape) : NULL;
        at += 2;
        if (found != NULL) {
            *to++ = "\"\\/\b\f\n\r\t"[found - plain];
        } else if (escape == 'u') {
            unsigned code = hex4();
            if (code >= 0xD800 && code < 0xDC00 && at[0] == '\\' && at[1] == 'u') {
                at += 2;
                code = 0x10000 + ((code - 0xD800) << 10) + ((hex4() - 0xDC00) & 1023);
            }
            to = put_utf8(to, code);
        } else {
            misunderstand("a string has a bad escape");
        }
    }
    at++;
    *to = 0;
    return start;
}

static Int parse_integer(const char *text, char **end) {
    errno = 0;
    Int value = strtoll(text, end, 10);
    if (errno == ERANGE) value = INT64_MAX, errno = 0;
    return value;
}

static Json *parse_value(int depth) {
    Json *value = zeros(1, sizeof *value);
    skip_spaces();
    if (depth > 64) misunderstand("values are nested too deeply");
    if (*at == '{' || *at == '[') {
        char close = *at == '{' ? '}' : ']';
        value->kind = *at++ == '{' ? OBJECT : LIST;
        Json **link = &value->first;
        for (skip_spaces(); *at != close; skip_spaces()) {
            char *key = NULL;
            if (value->integer++ > 0) expect(',');
            if (value->kind == OBJECT) {
                skip_spaces();
                key = parse_string();
                expect(':');
            }
            *link = parse_value(depth + 1);
            (*link)->key = key;
            link = &(*link)->next;
        }
        at++;
    } else if (*at == '"') {
        value->kind = STRING;
        value->text = parse_string();
    } else if (*at == '-' || (*at >= '0' && *at <= '9')) {
        value->kind = INTEGER;
        value->integer = parse_integer(at, &at);
    } else if (strncmp(at, "null", 4) == 0) {
        at += 4;
    } else if (strncmp(at, "true", 4) == 0 || strncmp(at, "false", 5) == 0) {
        value->kind = TRUTH;
        value->integer = *at == 't';
        at += *at == 't' ? 4 : 5;
    } else {
        misunderstand("this is not JSON");
    }
    return value;
}

static Json *find(const Json *object, const char *key) {
    for (Json *item = object->kind == OBJECT ? object->first : NULL; item != NULL; item = item->next)
        if (strcmp(item->key, key) == 0) return item;
    return NULL;
}

/* The fields of an object must be these, separated by spaces; none twice. */
static int has_exactly(const Json *object, const char *names) {
    Int count = 0;
    for (const char *name = names; *name; count++) {
        size_t length = strcspn(name, " ");
        char key[32];
        snprintf(key, sizeof key, "%.*s", (int)length, name);
        if (find(object, key) == NULL) return 0;
        name += length + (name[length] == ' ');
    }
    return object->kind == OBJECT && object->integer == count;
}

/* --- Values --- */

typedef enum { F64, F32, F16, BF16, I64, I32, U8, BOOL8, DTYPES } Dtype;

static const char *const dtype_names[] = {"F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"};
static const int item_bytes[] = {8, 4, 2, 2, 8, 4, 1, 1};

typedef struct {
    Dtype dtype;
    int rank;
    Int shape[8], count;
    unsigned char *data;
} Array;

typedef struct {
    Int count, *of;
} Ids;

static int is_null(const Json *value) { return value == NULL || value->kind == NIL; }

static Int as_integer(const Json *value, const char *name) {
    const Json *big = value ? find(value, "integer") : NULL;
    if (big != NULL && big->kind == STRING) {
        char *end;
        Int number = parse_integer(big->text, &end);
        if (*end || end == big->text) misunderstand("an integer has no digits");
        if (number == INT64_MAX || number == INT64_MIN) skip("%s is beyond 63 bits", name);
        return number;
    }
    if (value == NULL || value->kind != INTEGER) refuse("%s must be an integer", name);
    return value->integer;
}

static double as_float(const Json *value, const char *name) {
    const Json *text = value ? find(value, "float") : NULL;
    if (text == NULL || text->kind != STRING) return (double)as_integer(value, name);
    char *end;
    double number = strtod(text->text, &end);
    if (*end || end == text->text) misunderstand("a float has no digits");
    return number;
}

static const char *as_text(const Json *value, const char *name) {
    if (value == NULL || value->kind != STRING) refuse("%s must be a text", name);
    return value->text;
}

static const Json *as_list(const Json *value, const char *name) {
    if (value == NULL || value->kind != LIST) refuse("%s must be a list", name);
    return value;
}

static Dtype as_dtype(const char *name) {
    Dtype dtype = 0;
    while (dtype < DTYPES && strcmp(name, dtype_names[dtype]) != 0) dtype++;
    return dtype;
}

static unsigned char *decode_base64(const char *text, Int bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static signed char value_of[256];
    if (value_of['/'] == 0) {
        memset(value_of, -1, sizeof value_of);
        for (int i = 0; i < 64; i++) value_of[(unsigned char)digits[i]] = (signed char)i;
    }
    size_t length = strlen(text), due = ((size_t)bytes + 2) / 3 * 4, padding = (size_t)(3 - bytes % 3) % 3;
    if (length != due || (padding && strcmp(text + due - padding, padding == 1 ? "=" : "==") != 0))
        misunderstand("the data of an array do not fit its shape");
    unsigned char *data = zeros((Int)due, 1);
    for (size_t i = 0; i < due; i += 4) {
        uint32_t word = 0;
        for (size_t j = i; j < i + 4; j++) {
            int value = j < due - padding ? value_of[(unsigned char)text[j]] : 0;
            if (value < 0) misunderstand("the data of an array are not base64");
            word = word << 6 | (uint32_t)value;
        }
        for (size_t j = 0; j < 3; j++) data[i / 4 * 3 + j] = (unsigned char)(word >> (16 - 8 * j));
    }
    return data;
}

static const Array *as_array(const Json *value, const char *name) { /* NULL if it is null */
    if (is_null(value)) return NULL;
    if (!has_exactly(value, "dtype shape data")) refuse("%s must be an array", name);
    const Json *dtype = find(value, "dtype"), *shape = find(value, "shape"), *data = find(value, "data");
    if (dtype->kind != STRING || shape->kind != LIST || data->kind != STRING || shape->integer > 8)
        misunderstand("this is no array");
    Array *array = zeros(1, sizeof *array);
    array->dtype = as_dtype(dtype->text);
    if (array->dtype == DTYPES) misunderstand("an array has an unknown dtype");
    array->count = 1;
    for (const Json *size = shape->first; size != NULL; size = size->next) {
        if (size->kind != INTEGER || size->integer < 0) misunderstand("a shape is a list of sizes");
        array->shape[array->rank++] = size->integer;
        array->count = times(array->count, size->integer);
    }
    array->data = decode_base64(data->text, times(array->count, item_bytes[array->dtype]));
    return array;
}

/* The integers of a list or of an array of one dimension. */
static Ids as_integers(const Json *value, const char *name) {
    Ids ids = {0, NULL};
    if (value != NULL && value->kind == LIST) {
        ids.of = zeros(value->integer, sizeof(Int));
        for (const Json *item = value->first; item != NULL; item = item->next)
            ids.of[ids.count++] = as_integer(item, name);
        return ids;
    }
    const Array *array = as_array(value, name);
    if (array == NULL || array->rank != 1) refuse("%s must be a list of integers", name);
    ids.of = zeros(array->count, sizeof(Int));
    for (; ids.count < array->count; ids.count++) {
        int32_t narrow;
        if (array->dtype == I64) memcpy(&ids.of[ids.count], array->data + 8 * ids.count, 8);
        else if (array->dtype == I32) memcpy(&narrow, array->data + 4 * ids.count, 4), ids.of[ids.count] = narrow;
        else if (array->dtype == U8) ids.of[ids.count] = array->data[ids.count];
        else refuse("%s must be integers", name);
    }
    return ids;
}

static Ids as_ids(const Json *value, const char *name, Int n) {
    Ids ids = as_integers(value, name);
    for (Int j = 0; j < ids.count; j++) {
        if (ids.of[j] < 0 || ids.of[j] >= n) refuse("%s must lie below %lld, not at %lld", name, n, ids.of[j]);
        if (j > 0 && ids.of[j] <= ids.of[j - 1]) refuse("%s must be strictly ascending", name);
    }
    return ids;
}

static int is_stored(Dtype dtype) { return dtype == F32 || dtype == F16 || dtype == BF16; }

/* One stored weight as a float, exactly. */
static float widen(Dtype dtype, const unsigned char *data, Int index) {
    float value;
    uint16_t half;
    if (dtype == F32) {
        memcpy(&value, data + 4 * index, 4);
        return value;
    }
    memcpy(&half, data + 2 * index, 2);
    if (dtype == BF16) {
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, 4);
        return value;
    }
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    else value = (float)(exponent == 0 ? ldexp(mantissa, -24) : ldexp(mantissa + 1024, exponent - 25));
    return half >> 15 ? -value : value;
}

static float nearest_float(double value) { /* a conversion out of range is undefined in C */
    return fabs(value) < 0x1.ffffffp127 || isnan(value) ? (float)value : value > 0 ? INFINITY : -INFINITY;
}

/* --- Answers --- */

static char *answer;
static size_t answer_length, answer_room;

static char *room_for(size_t more) {
    if (answer_length + more + 1 > answer_room) {
        answer_room = 2 * (answer_length + more + 1);
        answer = realloc(answer, answer_room);
        if (answer == NULL) exit(1);
    }
    return answer + answer_length;
}

static void say(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    answer_length += (size_t)vsnprintf(room_for(512), 512, format, rest);
    va_end(rest);
}

static void say_integer(Int value) {
    int exact = value >= -(1LL << 53) && value <= 1LL << 53; /* in a JSON number */
    say(exact ? "%lld" : "{\"integer\":\"%lld\"}", value);
}

static void say_array(Dtype dtype, int rank, const Int *shape, const void *data) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    Int count = 1;
    say("{\"dtype\":\"%s\",\"shape\":[", dtype_names[dtype]);
    for (int i = 0; i < rank; i++) {
        say(i ? ",%lld" : "%lld", shape[i]);
        count *= shape[i];
    }
    say("],\"data\":\"");
    const unsigned char *bytes = data;
    size_t length = (size_t)(count * item_bytes[dtype]);
    char *to = room_for(length / 3 * 4 + 8);
    for (size_t i = 0; i < length; i += 3) {
        uint32_t word = (uint32_t)bytes[i] << 16;
        if (i + 1 < length) word |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < length) word |= bytes[i + 2];
        *to++ = digits[word >> 18];
        *to++ = digits[word >> 12 & 63];
        *to++ = i + 1 < length ? digits[word >> 6 & 63] : '=';
        *to++ = i + 2 < length ? digits[word & 63] : '=';
    }
    answer_length = (size_t)(to - answer);
    say("\"}");
}

static void say_ids(Ids ids) { say_array(I64, 1, &ids.count, ids.of); }

static void say_ids_of(const char *mask, Int n) { /* the ids whose element is not 0 */
    Ids ids = {0, zeros(n, sizeof(Int))};
    for (Int i = 0; i < n; i++)
        if (mask[i]) ids.of[ids.count++] = i;
    say_ids(ids);
}

/* --- Chapters 10 and 20: the FFN and the predictor --- */

typedef struct {
    const char *activation;
    const Array *up, *down, *gate, *up_bias, *gate_bias, *down_bias;
    float tau;
    Int n, d;
} Ffn;

static void check_weights(const Array *array, const char *name, Dtype dtype, int rank, Int rows, Int columns) {
    if (array == NULL) return;
    if (array->dtype != dtype || array->rank != rank || array->shape[0] != rows ||
        (rank == 2 && array->shape[1] != columns))
        refuse("%s has another shape or dtype than up has", name);
}

static Ffn as_ffn(const Json *of) {
    static const char *const activations = " relu squared_relu fatrelu silu gelu_tanh gelu_erf ";
    Ffn ffn = {
        as_text(find(of, "activation"), "activation"),
        as_array(find(of, "up"), "up"),
        as_array(find(of, "down"), "down"),
        as_array(find(of, "gate"), "gate"),
        as_array(find(of, "up_bias"), "up_bias"),
        as_array(find(of, "gate_bias"), "gate_bias"),
        as_array(find(of, "down_bias"), "down_bias"),
        0, 0, 0,
    };
    char word[32];
    snprintf(word, sizeof word, " %.28s ", ffn.activation);
    if (strchr(ffn.activation, ' ') || strlen(word) < 4 || strstr(activations, word) == NULL)
        refuse("the activation is unknown");
    ffn.tau = nearest_float(as_float(find(of, "tau"), "tau"));
    if (!(ffn.tau >= 0 && ffn.tau < INFINITY)) refuse("tau must be at least 0 and finite");
    if (ffn.up == NULL || ffn.down == NULL) refuse("up and down must be there");
    if (ffn.up->rank != 2 || !is_stored(ffn.up->dtype)) refuse("up must be (n, d) in a stored dtype");
    ffn.n = ffn.up->shape[0];
    ffn.d = ffn.up->shape[1];
    check_weights(ffn.down, "down", ffn.up->dtype, 2, ffn.n, ffn.d);
    check_weights(ffn.gate, "gate", ffn.up->dtype, 2, ffn.n, ffn.d);
    check_weights(ffn.up_bias, "up_bias", ffn.up->dtype, 1, ffn.n, 0);
    check_weights(ffn.gate_bias, "gate_bias", ffn.up->dtype, 1, ffn.n, 0);
    check_weights(ffn.down_bias, "down_bias", ffn.up->dtype, 1, ffn.d, 0);
    if (ffn.gate == NULL && ffn.gate_bias != NULL) refuse("gate_bias needs a gate");
    return ffn;
}

static const float *as_input(const Array *x, Int d) {
    if (x == NULL || x->dtype != F32 || x->rank != 1 || x->shape[0] != d) refuse("x must be float32 of (%lld)", d);
    return (const float *)(const void *)x->data;
}

static float activate(const char *name, float z, float tau) {
    double v = z;
    if (strcmp(name, "relu") == 0) return z > 0 ? z : 0;
    if (strcmp(name, "squared_relu") == 0) return z > 0 ? z * z : 0;
    if (strcmp(name, "fatrelu") == 0) return z > tau ? z : 0;
    if (strcmp(name, "silu") == 0) return (float)(v / (1 + exp(-v)));
    if (strcmp(name, "gelu_erf") == 0) return (float)(0.5 * v * erfc(-v / sqrt(2)));
    double inner = sqrt(2 / acos(-1)) * (v + 0.044715 * v * v * v);
    return (float)(v / (1 + exp(-2 * inner))); /* ½(1 + tanh w) = σ(2w), where nothing cancels */
}

static float dot(const float *x, Dtype dtype, const unsigned char *row, Int d) {
    float sum = 0;
    for (Int k = 0; k < d; k++) sum += x[k] * widen(dtype, row, k);
    return sum;
}

/* y += what neuron i contributes, from its rows: gate (if there is one), up, down. */
static void add_neuron(float *y, const float *x, const Ffn *ffn, Int i, const unsigned char *const rows[3]) {
    Dtype dtype = ffn->up->dtype;
    float h = dot(x, dtype, rows[1], ffn->d);
    if (ffn->up_bias != NULL) h += widen(dtype, ffn->up_bias->data, i);
    if (ffn->gate == NULL) {
        h = activate(ffn->activation, h, ffn->tau);
    } else {
        float g = dot(x, dtype, rows[0], ffn->d);
        if (ffn->gate_bias != NULL) g += widen(dtype, ffn->gate_bias->data, i);
        h *= activate(ffn->activation, g, ffn->tau);
    }
    for (Int j = 0; j < ffn->d; j++) y[j] += h * widen(dtype, rows[2], j);
}

static void add_down_bias(float *y, const Ffn *ffn) {
    for (Int j = 0; ffn->down_bias != NULL && j < ffn->d; j++) y[j] += widen(ffn->up->dtype, ffn->down_bias->data, j);
}

static void run_ffn(const Json *args, int sparse) {
    Ffn ffn = as_ffn(args);
    const float *x = as_input(as_array(find(args, "x"), "x"), ffn.d);
    Ids active = {ffn.n, NULL};
    if (sparse) active = as_ids(find(args, "active"), "active", ffn.n);
    float *y = zeros(ffn.d, sizeof *y);
    for (Int j = 0; j < active.count; j++) {
        Int i = sparse ? active.of[j] : j, row = i * ffn.d * item_bytes[ffn.up->dtype];
        const unsigned char *const rows[3] = {
            ffn.gate ? ffn.gate->data + row : NULL, ffn.up->data + row, ffn.down->data + row};
        add_neuron(y, x, &ffn, i, rows);
    }
    add_down_bias(y, &ffn);
    say_array(F32, 1, &ffn.d, y);
}

static void dense_ffn(const Json *args) { run_ffn(args, 0); }

static void sparse_ffn(const Json *args) { run_ffn(args, 1); }

typedef struct {
    const Array *a, *b, *bias;
    float threshold;
    Int n, r, d;
} Predictor;

static Predictor as_predictor(const Json *of) {
    const Array *a = as_array(find(of, "a"), "a"), *b = as_array(find(of, "b"), "b");
    Predictor p = {a, b, as_array(find(of, "bias"), "bias"), 0, 0, 0, 0};
    p.threshold = nearest_float(as_float(find(of, "threshold"), "threshold"));
    if (isnan(p.threshold)) refuse("the threshold must be a number");
    if (p.a == NULL || p.b == NULL || p.a->rank != 2 || p.b->rank != 2 || p.b->shape[1] != p.a->shape[0])
        refuse("a predictor needs a (r, d) and b (n, r)");
    p.r = p.a->shape[0];
    p.d = p.a->shape[1];
    p.n = p.b->shape[0];
    if (p.bias != NULL && (p.bias->rank != 1 || p.bias->shape[0] != p.n)) refuse("the bias must be (n)");
    if (!is_stored(p.a->dtype) || !is_stored(p.b->dtype) || (p.bias && !is_stored(p.bias->dtype)))
        refuse("a, b and bias must have a stored dtype");
    return p;
}

static Ids predict(const float *x, const Predictor *p) {
    Ids ids = {0, zeros(p->n, sizeof(Int))};
    float *t = zeros(p->r, sizeof *t);
    for (Int j = 0; j < p->r; j++) t[j] = dot(x, p->a->dtype, p->a->data + j * p->d * item_bytes[p->a->dtype], p->d);
    for (Int i = 0; i < p->n; i++) {
        float z = dot(t, p->b->dtype, p->b->data + i * p->r * item_bytes[p->b->dtype], p->r);
        if (p->bias != NULL) z += widen(p->bias->dtype, p->bias->data, i);
        if (z > p->threshold) ids.of[ids.count++] = i;
    }
    return ids;
}

static void predict_active(const Json *args) {
    Predictor predictor = as_predictor(args);
    say_ids(predict(as_input(as_array(find(args, "x"), "x"), predictor.d), &predictor));
}

/* --- Chapters 40, 52 and 60: bundles, plans, gathering --- */

typedef struct {
    Int n, d, fields, block, start, bundle_bytes, stride;
    Dtype dtype;
    Int *position_of; /* neuron → position; NULL if they are the same */
    Int *order;
} Layout;

static void check_block(Int block) {
    if (block < 1 || (block & (block - 1)) != 0) refuse("block must be a power of two");
}

static Layout layout_of(Int n, Int d, Dtype dtype, Int fields, Int block, Int start) {
    Layout layout = {n, d, fields, block, start, 0, 0, dtype, NULL, NULL};
    if (n < 1 || d < 1 || fields < 1) refuse("a layout needs n, d and fields of at least 1");
    if (!is_stored(dtype)) refuse("dtype must be F32, F16 or BF16");
    check_block(block);
    if (start < 0 || start % block != 0) refuse("start must be a multiple of the block");
    layout.bundle_bytes = times(times(fields, d), item_bytes[dtype]);
    if (layout.bundle_bytes < block)
        for (layout.stride = 1; layout.stride < layout.bundle_bytes;) layout.stride *= 2;
    else
        layout.stride = plus(layout.bundle_bytes, block - 1) / block * block;
    return layout;
}

static Layout as_layout(const Json *args) {
    const Json *fields = as_list(find(args, "fields"), "fields"), *start = find(args, "start");
    for (const Json *field = fields->first; field != NULL; field = field->next)
        for (const Json *other = fields->first; other != field; other = other->next)
            if (strcmp(as_text(field, "a field"), as_text(other, "a field")) == 0) refuse("fields must be distinct");
    Int n = as_integer(find(args, "n"), "n"), d = as_integer(find(args, "d"), "d");
    Int block = as_integer(find(args, "block"), "block");
    Dtype dtype = as_dtype(as_text(find(args, "dtype"), "dtype"));
    Layout layout = layout_of(n, d, dtype, fields->integer, block, start ? as_integer(start, "start") : 0);
    if (is_null(find(args, "order"))) return layout;
    Ids order = as_integers(find(args, "order"), "order");
    if (order.count != layout.n) refuse("order must hold each neuron once");
    layout.order = order.of;
    layout.position_of = zeros(layout.n, sizeof(Int));
    for (Int i = 0; i < layout.n; i++) layout.position_of[i] = -1;
    for (Int p = 0; p < layout.n; p++) {
        if (order.of[p] < 0 || order.of[p] >= layout.n || layout.position_of[order.of[p]] >= 0)
            refuse("order must hold each neuron once");
        layout.position_of[order.of[p]] = p;
    }
    return layout;
}

static Int offset_of(const Layout *layout, Int neuron) {
    Int position = layout->position_of ? layout->position_of[neuron] : neuron;
    return plus(layout->start, times(position, layout->stride));
}

static void bundle_layout(const Json *args) {
    Layout layout = as_layout(args);
    Ids ids = as_ids(find(args, "ids"), "ids", layout.n);
    Int *extents = zeros(ids.count, 2 * sizeof(Int)), shape[2] = {ids.count, 2};
    for (Int j = 0; j < ids.count; j++) {
        extents[2 * j] = offset_of(&layout, ids.of[j]);
        extents[2 * j + 1] = layout.bundle_bytes;
    }
    say("[");
    say_integer(layout.stride);
    say(",");
    say_array(I64, 2, shape, extents);
    say("]");
}

/* All bundles: field f of neuron i from matrices[f]. */
static unsigned char *pack(const Layout *layout, const Array *const *matrices) {
    Int row = layout->d * item_bytes[layout->dtype];
    unsigned char *packed = zeros(layout->n, layout->stride);
    for (Int f = 0; f < layout->fields; f++) {
        const Array *matrix = matrices[f];
        if (matrix == NULL || matrix->dtype != layout->dtype || matrix->rank != 2 || matrix->shape[0] != layout->n ||
            matrix->shape[1] != layout->d)
            refuse("field %lld must be (n, d) in the layout's dtype", f);
        for (Int e = 0; e < matrix->count; e++)
            if (!isfinite(widen(matrix->dtype, matrix->data, e))) refuse("field %lld is not finite", f);
        for (Int p = 0; p < layout->n; p++) {
            Int i = layout->order ? layout->order[p] : p;
            memcpy(packed + p * layout->stride + f * row, matrix->data + i * row, (size_t)row);
        }
    }
    return packed;
}

static void pack_bundles(const Json *args) {
    Layout layout = as_layout(args);
    const Json *list = as_list(find(args, "matrices"), "matrices"), *item = list->first;
    if (list->integer != layout.fields) refuse("there must be a matrix for each field");
    const Array **matrices = zeros(layout.fields, sizeof *matrices);
    for (Int f = 0; f < layout.fields; f++, item = item->next) matrices[f] = as_array(item, "a matrix");
    Int size = times(layout.n, layout.stride);
    say_array(U8, 1, &size, pack(&layout, matrices));
}

static void unpack_bundles(const Json *args) {
    Layout layout = as_layout(args);
    const Array *packed = as_array(find(args, "packed"), "packed");
    Int row = layout.d * item_bytes[layout.dtype], shape[2] = {layout.n, layout.d};
    if (packed == NULL || packed->dtype != U8 || packed->rank != 1 || packed->count != times(layout.n, layout.stride))
        refuse("packed must be n * stride bytes");
    say("[");
    for (Int f = 0; f < layout.fields; f++) {
        unsigned char *matrix = zeros(layout.n, row);
        for (Int p = 0; p < layout.n; p++) {
            Int i = layout.order ? layout.order[p] : p;
            memcpy(matrix + i * row, packed->data + p * layout.stride + f * row, (size_t)row);
        }
        say(f ? "," : "");
        say_array(layout.dtype, 2, shape, matrix);
    }
    say("]");
}

typedef struct {
    Int offset, length;
} Extent;

static int by_offset(const void *a, const void *b) {
    const Extent *p = a, *q = b;
    return (p->offset > q->offset) - (p->offset < q->offset);
}

/* The plan of some extents, in their place; its length. */
static Int plan(Extent *extents, Int count, Int block, Int max_gap) {
    Int reads = 0;
    if (max_gap < 0) refuse("max_gap must be at least 0");
    check_block(block);
    for (Int j = 0; j < count; j++)
        if (extents[j].offset < 0 || extents[j].length < 1) refuse("an extent is empty, or begins before 0");
    qsort(extents, (size_t)count, sizeof *extents, by_offset);
    for (Int j = 0; j < count; j++) {
        Int start = extents[j].offset / block * block, stop = plus(extents[j].offset, extents[j].length);
        stop = plus(stop, block - 1) / block * block;
        Extent *last = &extents[reads - 1];
        if (reads > 0 && start - (last->offset + last->length) <= max_gap) {
            if (stop > last->offset + last->length) last->length = stop - last->offset;
        } else {
            extents[reads++] = (Extent){start, stop - start};
        }
    }
    return reads;
}

static void read_plan(const Json *args) {
    const Array *given = as_array(find(args, "extents"), "extents");
    if (given == NULL || given->dtype != I64 || given->rank != 2 || given->shape[1] != 2)
        refuse("extents must be int64 of (m, 2)");
    Extent *extents = (Extent *)(void *)given->data;
    Int block = as_integer(find(args, "block"), "block"), max_gap = as_integer(find(args, "max_gap"), "max_gap");
    Int shape[2] = {plan(extents, given->shape[0], block, max_gap), 2};
    say_array(I64, 2, shape, extents);
}

/* The bundles of these neurons, one after the other; adds requests, useful bytes and read bytes. */
static unsigned char *gather(
    const unsigned char *image, Int size, const Layout *layout, Ids ids, Int max_gap, Int counters[3]) {
    Extent *extents = zeros(ids.count, sizeof *extents);
    unsigned char *rows = zeros(ids.count, layout->bundle_bytes);
    for (Int j = 0; j < ids.count; j++) {
        extents[j] = (Extent){offset_of(layout, ids.of[j]), layout->bundle_bytes};
        if (extents[j].length > size || extents[j].offset > size - extents[j].length)
            refuse("the image ends before the bundle of neuron %lld", ids.of[j]);
        memcpy(rows + j * layout->bundle_bytes, image + extents[j].offset, (size_t)layout->bundle_bytes);
    }
    Int reads = plan(extents, ids.count, layout->block, max_gap);
    counters[0] += reads;
    counters[1] += ids.count * layout->bundle_bytes;
    for (Int j = 0; j < reads; j++) counters[2] += extents[j].length;
    return rows;
}

static void gather_rows(const Json *args) {
    Layout layout = as_layout(args);
    Ids ids = as_ids(find(args, "ids"), "ids", layout.n);
    const Array *image = as_array(find(args, "image"), "image");
    if (image == NULL || image->dtype != U8 || image->rank != 1) refuse("image must be bytes");
    Int counters[3] = {0, 0, 0}, three = 3, shape[3] = {ids.count, layout.fields, layout.d};
    Int max_gap = as_integer(find(args, "max_gap"), "max_gap");
    const unsigned char *rows = gather(image->data, image->count, &layout, ids, max_gap, counters);
    say("[");
    say_array(layout.dtype, 3, shape, rows);
    say(",");
    say_array(I64, 1, &three, counters);
    say("]");
}

/* --- Chapter 30: the window --- */

typedef struct {
    Int n, k, capacity, token, *last; /* last: the token that kept a resident neuron, or -1 */
} Window;

typedef struct {
    char *load, *evict, *bypass; /* masks over the neurons */
} Delta;

static Window empty_window(Int n, Int k, Int capacity) {
    if (n < 1 || k < 1 || capacity < 0) refuse("a window needs n and k of at least 1 and a capacity of at least 0");
    Window window = {n, k, capacity, 0, zeros(n, sizeof(Int))};
    for (Int i = 0; i < n; i++) window.last[i] = -1;
    return window;
}

static Delta update_window(Window *w, Ids active) {
    Delta delta = {zeros(w->n, 1), zeros(w->n, 1), zeros(w->n, 1)};
    char *predicted = zeros(w->n, 1), *kept = zeros(w->n, 1);
    for (Int j = 0; j < active.count; j++) predicted[active.of[j]] = 1;

    Int start = w->token >= w->k ? w->token - w->k + 1 : 0;
    for (; start < w->token; start++) { /* the oldest tokens leave until the union fits */
        Int size = 0;
        for (Int i = 0; i < w->n; i++) size += predicted[i] || w->last[i] >= start;
        if (size <= w->capacity) break;
    }
    Int room = w->capacity;
    for (int resident = 1; resident >= 0; resident--) /* rows that are there stay first */
        for (Int i = 0; i < w->n; i++)
            if (predicted[i] && (w->last[i] >= 0) == resident && room > 0) kept[i] = 1, room--;
    for (Int i = 0; i < w->n; i++) {
        int was = w->last[i] >= 0, stays = kept[i] || w->last[i] >= start;
        delta.load[i] = stays && !was;
        delta.evict[i] = was && !(was && stays);
        delta.bypass[i] = predicted[i] && !kept[i];
        if (kept[i]) w->last[i] = w->token;
        else if (!stays) w->last[i] = -1;
    }
    w->token++;
    return delta;
}

static void run_window(const Json *args) {
    Int n = as_integer(find(args, "n"), "n"), k = as_integer(find(args, "k"), "k");
    Ids capacities = as_integers(find(args, "capacities"), "capacities");
    const Json *sequences = as_list(find(args, "actives"), "actives");
    empty_window(n, k, 0);
    say("[");
    for (const Json *sequence = sequences->first; sequence != NULL; sequence = sequence->next) {
        Window *windows = zeros(capacities.count, sizeof *windows);
        for (Int l = 0; l < capacities.count; l++) windows[l] = empty_window(n, k, capacities.of[l]);
        say(sequence == sequences->first ? "[" : ",[");
        const Json *tokens = as_list(sequence, "a sequence");
        for (const Json *token = tokens->first; token != NULL; token = token->next) {
            const Json *layer = as_list(token, "a token")->first;
            if (token->integer != capacities.count) refuse("there must be ids for each layer");
            say(token == tokens->first ? "[" : ",[");
            for (Int l = 0; l < capacities.count; l++, layer = layer->next) {
                Delta delta = update_window(&windows[l], as_ids(layer, "active", n));
                say(l ? ",[" : "[");
                say_ids_of(delta.load, n);
                say(",");
                say_ids_of(delta.evict, n);
                say(",");
                say_ids_of(delta.bypass, n);
                say("]");
            }
            say("]");
        }
        say("]");
    }
    say("]");
}

/* --- Chapter 70: slots --- */

typedef struct {
    Int capacity, used, row_bytes, *ids;
    unsigned char *rows;
} Slots;

static int is_placement(const char *name) {
    return strcmp(name, "swap_with_last") == 0 || strcmp(name, "fill_holes") == 0;
}

static Int slot_of(const Slots *slots, Int id) {
    for (Int j = 0; j < slots->used; j++)
        if (slots->ids[j] == id) return j;
    return -1;
}

static void put_row(Slots *slots, Int target, Int id, const unsigned char *row) {
    slots->ids[target] = id;
    if (slots->row_bytes > 0) memcpy(slots->rows + target * slots->row_bytes, row, (size_t)slots->row_bytes);
}

/* Applies a token's changes; `news` are the rows of the loaded ids. The number of rows moved. */
static Int place(Slots *slots, const char *placement, Ids load, Ids evict, const unsigned char *news) {
    char *leaves = zeros(slots->used, 1);
    for (Int j = 0; j < evict.count; j++) {
        Int slot = slot_of(slots, evict.of[j]);
        if (slot < 0) refuse("neuron %lld leaves, and is in no slot", evict.of[j]);
        leaves[slot] = 1;
    }
    for (Int j = 0; j < load.count; j++)
        if (slot_of(slots, load.of[j]) >= 0) refuse("neuron %lld comes, and is in a slot", load.of[j]);
    Int count = slots->used - evict.count + load.count, last = slots->used - 1, moved = 0, hole = 0, filled = 0;
    if (count > slots->capacity) refuse("%lld rows do not fit %lld", count, slots->capacity);

    /* fill_holes: the lowest holes are for the new rows; swap_with_last: all new rows go behind the others. */
    int into_holes = strcmp(placement, "fill_holes") == 0;
    Int end = into_holes ? count : slots->used - evict.count, *targets = zeros(load.count, sizeof(Int));
    for (; into_holes && hole < slots->used && filled < load.count; hole++)
        if (leaves[hole]) targets[filled++] = hole;
    for (Int next = into_holes ? slots->used : end; filled < load.count; next++) targets[filled++] = next;
    for (; hole < end && hole < slots->used; hole++) {
        if (!leaves[hole]) continue;
        while (leaves[last]) last--;
        put_row(slots, hole, slots->ids[last], slots->rows + last * slots->row_bytes);
        last--;
        moved++;
    }
    for (Int j = 0; j < load.count; j++) put_row(slots, targets[j], load.of[j], news + j * slots->row_bytes);
    slots->used = count;
    return moved;
}

static void run_slots(const Json *args) {
    Slots slots = {as_integer(find(args, "capacity"), "capacity"), 0, 0, NULL, NULL};
    const char *placement = as_text(find(args, "placement"), "placement");
    const Json *deltas = as_list(find(args, "deltas"), "deltas"), *rows = as_list(find(args, "rows"), "rows");
    if (slots.capacity < 0) refuse("a matrix has at least 0 rows");
    if (!is_placement(placement)) refuse("the placement is unknown");
    if (deltas->integer != rows->integer) refuse("there must be rows for each delta");
    slots.ids = zeros(slots.capacity, sizeof(Int));
    const Array *first = NULL;
    const Json *new = rows->first;
    say("[");
    for (const Json *delta = deltas->first; delta != NULL; delta = delta->next, new = new->next) {
        if (delta->kind != LIST || delta->integer != 3) refuse("a delta is load, evict, bypass");
        Ids load = as_ids(delta->first, "load", INT64_MAX), evict = as_ids(delta->first->next, "evict", INT64_MAX);
        const Array *news = as_array(new, "rows");
        if (news == NULL || news->rank < 1 || news->shape[0] != load.count) refuse("each loaded id needs a row");
        if (first == NULL) {
            first = news;
            slots.row_bytes = item_bytes[news->dtype];
            for (int i = 1; i < news->rank; i++) slots.row_bytes = times(slots.row_bytes, news->shape[i]);
            slots.rows = zeros(slots.capacity, slots.row_bytes);
        }
        if (news->dtype != first->dtype || news->rank != first->rank ||
            memcmp(news->shape + 1, first->shape + 1, 7 * sizeof(Int)) != 0)
            refuse("rows must have the shape and dtype of the first ones");
        Int moved = place(&slots, placement, load, evict, news->data), shape[8];
        memcpy(shape, first->shape, sizeof shape);
        shape[0] = slots.used;
        say(delta == deltas->first ? "[" : ",[");
        say_ids((Ids){slots.used, slots.ids});
        say(",");
        say_array(first->dtype, first->rank, shape, slots.rows);
        say(",%lld]", moved);
    }
    say("]");
}

/* --- Chapter 80: decoding --- */

enum { LOADED, BYPASSED, EVICTED, REQUESTS, USEFUL_BYTES, READ_BYTES, MOVED_ROWS, COUNTERS };

static const char *const counter_names[] = {
    "loaded", "bypassed", "evicted", "requests", "useful_bytes", "read_bytes", "moved_rows"};

typedef struct {
    Ffn ffn;
    Predictor predictor;
    Layout layout;
    const unsigned char *image;
    Window window;
    Slots slots;
} Layer;

typedef struct {
    const char *placement;
    int only_predicted; /* semantics */
    Int max_gap, bypass_rows;
} Options;

static Ids ids_of(const char *mask, Int n) {
    Ids ids = {0, zeros(n, sizeof(Int))};
    for (Int i = 0; i < n; i++)
        if (mask[i]) ids.of[ids.count++] = i;
    return ids;
}

/* One token through one layer: y, and the counters in their order. */
static void decode(Layer *layer, const float *x, const Options *options, float *y, Int counters[COUNTERS]) {
    Int n = layer->ffn.n, bytes = layer->layout.bundle_bytes, passed = 0;
    Ids predicted = predict(x, &layer->predictor);
    Delta delta = update_window(&layer->window, predicted);
    Ids load = ids_of(delta.load, n), evict = ids_of(delta.evict, n), bypass = ids_of(delta.bypass, n);
    const unsigned char **row_of = zeros(n, sizeof *row_of); /* neuron → its bundle in DRAM */
    unsigned char *news = zeros(load.count, bytes);

    for (int first = 1; first || passed < bypass.count; first = 0) { /* batch by batch */
        char *wanted = zeros(n, 1);
        Int rest = bypass.count - passed, loaded = 0;
        Int stop = rest > options->bypass_rows ? passed + options->bypass_rows : bypass.count;
        for (; passed < stop; passed++) wanted[bypass.of[passed]] = 1;
        for (Int i = 0; first && i < n; i++) wanted[i] |= delta.load[i];
        Ids batch = ids_of(wanted, n);
        unsigned char *rows = gather(
            layer->image, n * layer->layout.stride, &layer->layout, batch, options->max_gap, counters + REQUESTS);
        for (Int j = 0; j < batch.count; j++) {
            if (delta.bypass[batch.of[j]]) row_of[batch.of[j]] = rows + j * bytes;
            else memcpy(news + loaded++ * bytes, rows + j * bytes, (size_t)bytes);
        }
    }
    counters[LOADED] = load.count;
    counters[BYPASSED] = bypass.count;
    counters[EVICTED] = evict.count;
    counters[MOVED_ROWS] = place(&layer->slots, options->placement, load, evict, news);
    for (Int j = 0; j < layer->slots.used; j++) row_of[layer->slots.ids[j]] = layer->slots.rows + j * bytes;

    char *chosen = zeros(n, 1);
    for (Int j = 0; j < predicted.count; j++) chosen[predicted.of[j]] = 1;
    for (Int i = 0; i < n; i++) {
        if (options->only_predicted ? !chosen[i] : row_of[i] == NULL) continue;
        Int row = layer->ffn.d * item_bytes[layer->ffn.up->dtype], gated = layer->ffn.gate != NULL;
        const unsigned char *const rows[3] = {row_of[i], row_of[i] + gated * row, row_of[i] + (gated + 1) * row};
        add_neuron(y, x, &layer->ffn, i, rows);
    }
    add_down_bias(y, &layer->ffn);
}

static void run_decode(const Json *args) {
    const Json *list = as_list(find(args, "layers"), "layers"), *pair = list->first;
    const Array *xs = as_array(find(args, "xs"), "xs");
    if (xs == NULL || xs->dtype != F32 || xs->rank != 3) refuse("xs must be float32 of (sequences, tokens, d)");
    Int k = as_integer(find(args, "k"), "k"), block = as_integer(find(args, "block"), "block");
    Ids capacities = as_integers(find(args, "capacities"), "capacities");
    const char *semantics = as_text(find(args, "semantics"), "semantics");
    Options options = {
        as_text(find(args, "placement"), "placement"), strcmp(semantics, "predicted") == 0,
        as_integer(find(args, "max_gap"), "max_gap"), as_integer(find(args, "bypass_rows"), "bypass_rows")};
    if (!is_placement(options.placement)) refuse("the placement is unknown");
    if (!options.only_predicted && strcmp(semantics, "resident") != 0) refuse("the semantics are unknown");
    if (capacities.count != list->integer) refuse("there must be a capacity for each layer");
    if (options.bypass_rows < 1 || options.max_gap < 0) refuse("bypass_rows must be at least 1, max_gap at least 0");

    Int d = xs->shape[2];
    Layer *layers = zeros(list->integer, sizeof *layers);
    for (Int l = 0; l < list->integer; l++, pair = pair->next) {
        const Json *ffn = pair->first ? find(pair->first, "FFN") : NULL;
        const Json *predictor = pair->integer == 2 ? find(pair->first->next, "Predictor") : NULL;
        if (pair->kind != LIST || ffn == NULL || predictor == NULL) refuse("a layer is an FFN and its Predictor");
        Layer *layer = &layers[l];
        layer->ffn = as_ffn(ffn);
        layer->predictor = as_predictor(predictor);
        if (layer->ffn.d != d || layer->predictor.d != d || layer->predictor.n != layer->ffn.n)
            refuse("the FFN, the predictor and xs do not fit each other");
        const Array *matrices[3] = {layer->ffn.gate, layer->ffn.up, layer->ffn.down};
        int gated = layer->ffn.gate != NULL;
        layer->layout = layout_of(layer->ffn.n, d, layer->ffn.up->dtype, 2 + gated, block, 0);
        layer->image = pack(&layer->layout, matrices + !gated);
        empty_window(layer->ffn.n, k, capacities.of[l]);
    }
    Int shape[4] = {xs->shape[0], xs->shape[1], list->integer, d}, steps = times(times(shape[0], shape[1]), shape[2]);
    float *ys = zeros(times(steps, d), sizeof *ys);
    Int *all = zeros(times(steps, COUNTERS), sizeof(Int)), step = 0;
    for (Int s = 0; s < shape[0]; s++) {
        for (Int l = 0; l < shape[2]; l++) {
            Int most = capacities.of[l] < layers[l].ffn.n ? capacities.of[l] : layers[l].ffn.n;
            layers[l].window = empty_window(layers[l].ffn.n, k, capacities.of[l]);
            layers[l].slots = (Slots){most, 0, layers[l].layout.bundle_bytes, zeros(most, sizeof(Int)), NULL};
            layers[l].slots.rows = zeros(most, layers[l].layout.bundle_bytes);
        }
        for (Int t = 0; t < shape[1]; t++) {
            const float *x = (const float *)(const void *)xs->data + (s * shape[1] + t) * d;
            for (Int l = 0; l < shape[2]; l++, step++)
                decode(&layers[l], x, &options, ys + step * d, all + step * COUNTERS);
        }
    }
    say("[");
    say_array(F32, 4, shape, ys);
    for (int c = 0; c < COUNTERS; c++) {
        Int *counts = zeros(steps, sizeof(Int));
        for (Int i = 0; i < steps; i++) counts[i] = all[i * COUNTERS + c];
        say(c ? ",\"%s\":" : ",{\"%s\":", counter_names[c]);
        say_array(I64, 3, shape, counts);
    }
    say("}]");
}

/* --- The protocol --- */

static void logits(const Json *args) {
    (void)args;
    skip("it reads no checkpoints");
}

#define FFN "activation up down gate up_bias gate_bias down_bias tau"
#define LAYOUT "n d dtype fields block"

static const struct {
    const char *name, *parameters;
    void (*run)(const Json *args);
} operations[] = {
    {"predict_active", "x a b bias threshold", predict_active},
    {"dense_ffn", "x " FFN, dense_ffn},
    {"sparse_ffn", "x " FFN " active", sparse_ffn},
    {"bundle_layout", LAYOUT " start order ids", bundle_layout},
    {"pack_bundles", LAYOUT " order matrices", pack_bundles},
    {"unpack_bundles", LAYOUT " order packed", unpack_bundles},
    {"read_plan", "extents block max_gap", read_plan},
    {"gather_rows", "image " LAYOUT " start order ids max_gap", gather_rows},
    {"run_window", "n k capacities actives", run_window},
    {"run_slots", "capacity placement deltas rows", run_slots},
    {"run_decode", "layers xs k capacities semantics placement block max_gap bypass_rows", run_decode},
    {"logits", "model_dir token_ids predictor", logits},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

static void say_facts(void) {
    say("{\"protocol\":1,\"name\":\"flashref-c-engine\",\"version\":\"1\",\"language\":\"c\",\"operations\":[");
    for (int i = 0; i < OPERATIONS - 1; i++) say(i ? ",\"%s\"" : "\"%s\"", operations[i].name);
    say("],\"unsupported\":{\"logits\":\"it reads no checkpoints\"},\"dtypes\":[\"F32\",\"F16\",\"BF16\"],");
    say("\"accumulate\":\"F32\",\"flushes_subnormals\":false}\n");
}

static int ends_well(void (*operation)(const Json *args), const Json *args) {
    if (setjmp(request_ended) != 0) return 0;
    operation(args);
    return 1;
}

static void run(const Json *message) {
    const Json *seq = find(message, "seq"), *name = find(message, "operation"), *args = find(message, "args");
    if (seq->kind != INTEGER || name->kind != STRING) misunderstand("seq is an integer, operation a text");
    int number = 0;
    while (number < OPERATIONS && strcmp(operations[number].name, name->text) != 0) number++;
    if (number == OPERATIONS) misunderstand("the operation is unknown");
    if (!has_exactly(args, operations[number].parameters)) misunderstand("args are not the operation's");
    say("{\"seq\":%lld,\"result\":", seq->integer);
    if (ends_well(operations[number].run, args)) {
        say("}\n");
        return;
    }
    answer_length = 0; /* what was said of a result does not count */
    say("{\"seq\":%lld,", seq->integer);
    if (strcmp(ending, "skip") == 0) say("\"skip\":{\"reason\":\"%s\"}}\n", reason);
    else say("\"error\":{\"code\":\"refused\",\"message\":\"%s\"}}\n", reason);
}

/* The next line, or NULL at the end. A zero byte in it ends the text that is parsed, so it is no JSON. */
static char *read_line(void) {
    static char *line;
    static size_t room;
    size_t length = 0;
    for (int c; (c = getc(stdin)) != EOF;) {
        if (length + 2 > room) {
            room = 2 * room + 65536;
            line = realloc(line, room);
            if (line == NULL) exit(1);
        }
        line[length++] = (char)c;
        line[length] = 0;
        if (c == '\n') return line;
    }
    return NULL;
}

static const Json *parse_line(void) {
    if (setjmp(request_ended) != 0) misunderstand("the message is too large");
    return parse_value(0);
}

int main(void) {
    int started = 0;
    while ((at = read_line()) != NULL) {
        const Json *message = parse_line();
        skip_spaces();
        const Json *cmd = find(message, "cmd");
        if (*at != 0 || cmd == NULL || cmd->kind != STRING) misunderstand("this is no object with a cmd");
        answer_length = 0;
        if (strcmp(cmd->text, "stop") == 0 && has_exactly(message, "cmd")) break;
        if (strcmp(cmd->text, "start") == 0 && !started && has_exactly(message, "cmd protocol spec")) {
            const Json *protocol = find(message, "protocol");
            if (protocol->kind != INTEGER || protocol->integer != 1) misunderstand("this is protocol 1");
            started = 1;
            say_facts();
        } else if (strcmp(cmd->text, "run") == 0 && started && has_exactly(message, "cmd seq operation args")) {
            run(message);
        } else {
            misunderstand("the cmd or a field of it is unknown, or it comes too early or twice");
        }
        fwrite(answer, 1, answer_length, stdout);
        fflush(stdout);
        free_all();
    }
    free_all();
    return 0;
}

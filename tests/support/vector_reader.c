// Conformance vectors without Python: reads chapter 94's files, and judges a small implementation by them.
//
//   cc -O2 -std=c11 vector_reader.c -o vector_reader -lm && ./vector_reader flashref/data/vectors/v1/*/*.json
//
// It implements dense_ffn, sparse_ffn and run_window, skips the other operations, and exits with 1 on a failure.
// What a reader for daily use would add is the check of each file's SHA-256.
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what, const char *where) {
    fprintf(stderr, "vector_reader: %s: %.60s\n", what, where);
    exit(2);
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die("cannot be read", path);
    *size = (size_t)ftell(file);
    char *text = calloc(*size + 1, 1);
    rewind(file);
    if (!text || fread(text, 1, *size, file) != *size) die("cannot be read", path);
    fclose(file);
    return text;
}

// JSON: a tree. type: '{', '[', '"', '0' (a whole number), or 't', 'f', 'n'.

typedef struct Json {
    char type, *key, *text;
    long long number;
    struct Json *first, *next;
} Json;

static const char *skip(const char *at) { return at + strspn(at, " \t\r\n,:"); }

static const char *parse_text(const char *at, char **text) {
    const char *end = ++at;
    while (*end && *end != '"') end += *end == '\\' ? 2 : 1;
    char *to = *text = calloc((size_t)(end - at) + 1, 1);
    for (; at < end; at++) *to++ = *at == '\\' ? *++at : *at;  // only \" and \\ occur
    return end + 1;
}

static const char *parse(const char *at, Json **found) {
    Json *value = *found = calloc(1, sizeof(Json));
    value->type = *at;
    if (*at == '"') return parse_text(at, &value->text);
    if (*at == '{' || *at == '[') {
        char end = *at == '{' ? '}' : ']';
        Json **next = &value->first;
        for (at = skip(at + 1); *at != end; at = skip(at), next = &(*next)->next) {
            char *key = NULL;
            if (!*at) die("JSON that ends too early", "");
            if (end == '}') at = skip(parse_text(at, &key));
            at = parse(at, next);
            (*next)->key = key;
        }
        return at + 1;
    }
    if (*at == '-' || (*at >= '0' && *at <= '9')) {
        char *end;
        value->type = '0';
        value->number = strtoll(at, &end, 10);
        return end;
    }
    if (*at != 't' && *at != 'f' && *at != 'n') die("no JSON", at);
    return at + (*at == 'f' ? 5 : 4);
}

static Json *find(const Json *object, const char *key) {
    for (Json *part = object->first; part; part = part->next)
        if (part->key && !strcmp(part->key, key)) return part;
    return NULL;
}

static Json *get(const Json *object, const char *key) {
    Json *found = find(object, key);
    if (!found) die("a field is missing", key);
    return found;
}

static const Json *at_index(const Json *list, int index) {
    const Json *part = list->first;
    while (part && index--) part = part->next;
    return part;
}

static int length(const Json *list) {
    int count = 0;
    for (Json *part = list->first; part; part = part->next) count++;
    return count;
}

// Tensors. The file: 8 bytes of length, a JSON header of that length, the data.

typedef struct {
    const char *dtype;
    const char *data;
    int dims, shape[4], size;
} Tensor;

static const char *tensor_data;
static Json *tensor_header;

static bool tensor(const Json *value, Tensor *out) {  // false for null
    memset(out, 0, sizeof *out);
    if (value->type == 'n') return false;
    Json *entry = get(tensor_header, get(value, "tensor")->text);
    out->dtype = get(entry, "dtype")->text;
    out->data = tensor_data + get(entry, "data_offsets")->first->number;
    out->size = 1;
    for (Json *size = get(entry, "shape")->first; size && out->dims < 4; size = size->next)
        out->size *= out->shape[out->dims++] = (int)size->number;
    return true;
}

static double element(const Tensor *of, int index) {
    uint16_t half;
    float single;
    double wide;
    if (!strcmp(of->dtype, "F64")) return memcpy(&wide, of->data + 8 * index, 8), wide;
    if (!strcmp(of->dtype, "F32")) return memcpy(&single, of->data + 4 * index, 4), single;
    memcpy(&half, of->data + 2 * index, 2);
    if (!strcmp(of->dtype, "U16")) {  // bfloat16: the upper half of a float
        uint32_t bits = (uint32_t)half << 16;
        return memcpy(&single, &bits, 4), single;
    }
    int exponent = half >> 10 & 31, fraction = half & 1023;  // float16; subnormals have the exponent of 1
    double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half >> 15 ? -size : size;
}

// The implementation under test: chapter 10 in float, activations in double.

static float activate(const char *name, double z, float tau) {
    double inner = sqrt(2 / acos(-1)) * (z + 0.044715 * z * z * z);
    if (!strcmp(name, "relu")) return (float)(z > 0 ? z : 0);
    if (!strcmp(name, "squared_relu")) return (float)(z > 0 ? z * z : 0);
    if (!strcmp(name, "fatrelu")) return (float)(z > tau ? z : 0);
    if (!strcmp(name, "silu")) return (float)(z / (1 + exp(-z)));
    if (!strcmp(name, "gelu_tanh")) return (float)(z / (1 + exp(-2 * inner)));  // ½(1 + tanh v) = σ(2v)
    return (float)(z / 2 * erfc(-z / sqrt(2)));
}

static bool fits(const Tensor *of, const char *dtype, int dims, int rows, int columns) {
    if (!of->dtype) return true;  // absent
    return !strcmp(of->dtype, dtype) && of->dims == dims && of->shape[0] == rows && (dims < 2 || of->shape[1] == columns);
}

static bool ascending(const Json *ids, long long n) {
    long long last = -1;
    for (Json *id = ids->first; id; last = id->number, id = id->next)
        if (id->number <= last || id->number >= n) return false;
    return true;
}

static float pre_activation(const Tensor *x, const Tensor *matrix, const Tensor *bias, int i) {
    float z = 0;
    int d = x->size;
    for (int k = 0; k < d; k++) z += (float)element(x, k) * (float)element(matrix, i * d + k);
    return bias->dtype ? z + (float)element(bias, i) : z;
}

static bool ffn(const Json *arguments, float *y, int *size) {  // false: refused
    static const char *known[] = {"relu", "squared_relu", "fatrelu", "silu", "gelu_tanh", "gelu_erf"};
    Tensor x, up, down, gate, up_bias, gate_bias, down_bias;
    tensor(get(arguments, "x"), &x);
    tensor(get(arguments, "up"), &up);
    tensor(get(arguments, "down"), &down);
    bool gated = tensor(get(arguments, "gate"), &gate);
    tensor(get(arguments, "up_bias"), &up_bias);
    bool gate_biased = tensor(get(arguments, "gate_bias"), &gate_bias);
    tensor(get(arguments, "down_bias"), &down_bias);
    const char *name = get(arguments, "activation")->text;
    double tau = strtod(get(get(arguments, "tau"), "float")->text, NULL);
    const Json *active = find(arguments, "active") ? get(get(arguments, "active"), "I64") : NULL;
    int n = up.shape[0], d = up.shape[1], unknown = 1;
    for (int i = 0; i < 6; i++) unknown &= strcmp(name, known[i]) != 0;
    if (unknown || !(tau >= 0 && tau < HUGE_VAL) || (gate_biased && !gated) || !fits(&x, "F32", 1, d, 0) ||
        !fits(&down, up.dtype, 2, n, d) || !fits(&gate, up.dtype, 2, n, d) || !fits(&up_bias, up.dtype, 1, n, 0) ||
        !fits(&gate_bias, up.dtype, 1, n, 0) || !fits(&down_bias, up.dtype, 1, d, 0) || (active && !ascending(active, n)))
        return false;
    *size = d;
    memset(y, 0, sizeof(float) * (size_t)d);
    int count = active ? length(active) : n;
#ifdef DROP_LAST_NEURON  // a bug planted by the tests
    if (count) count--;
#endif
    for (int j = 0; j < count; j++) {
        int i = active ? (int)at_index(active, j)->number : j;
        float h = gated ? activate(name, pre_activation(&x, &gate, &gate_bias, i), (float)tau) *
                              pre_activation(&x, &up, &up_bias, i)
                        : activate(name, pre_activation(&x, &up, &up_bias, i), (float)tau);
        for (int k = 0; k < d; k++) y[k] += h * (float)element(&down, i * d + k);
    }
    for (int k = 0; k < d && down_bias.dtype; k++) y[k] += (float)element(&down_bias, k);
    return true;
}

static bool right_output(const Json *expect, const float *y, int size) {
    Tensor due, bound;
    bool bounded = !strcmp(get(expect, "kind")->text, "bounded");
    tensor(get(expect, "result"), &due);
    if (bounded) tensor(get(expect, "bound"), &bound);
    if (due.size != size) return false;
    for (int k = 0; k < size; k++) {
        double exact = element(&due, k);
        if (bounded ? !(fabs(y[k] - exact) <= element(&bound, k)) : y[k] != exact) return false;  // 0 == −0
    }
    return true;
}

// Chapter 30: one layer of one sequence. last: the token that last kept a neuron which is there, or −1.

static bool same_ids(const Json *due, const int *mask, int n) {
    const Json *id = get(due, "I64")->first;
    for (int i = 0; i < n; i++)
        if (mask[i]) {
            if (!id || id->number != i) return false;
            id = id->next;
        }
    return !id;
}

static bool window(const Json *arguments, const Json *expect, bool error) {
    int n = (int)get(arguments, "n")->number, k = (int)get(arguments, "k")->number;
    const Json *capacities = get(arguments, "capacities"), *sequence = get(arguments, "actives")->first;
    for (Json *capacity = capacities->first; capacity; capacity = capacity->next)
        if (n < 1 || k < 1 || capacity->number < 0) return error;
    for (int s = 0; sequence; s++, sequence = sequence->next)
        for (int layer = 0; layer < length(capacities); layer++) {
            int last[64], active[64], load[64], evict[64], bypass[64], start = 0;
            for (int i = 0; i < n; i++) last[i] = -1;
            for (int t = 0; t < length(sequence); t++) {
                const Json *ids = get(at_index(at_index(sequence, t), layer), "I64");
                if (!ascending(ids, n)) return error;
                memset(active, 0, sizeof active);
                for (Json *id = ids->first; id; id = id->next) active[id->number] = 1;
                long long room = at_index(capacities, layer)->number;
                if (start < t - k + 1) start = t - k + 1;
                for (; start < t; start++) {  // the oldest token leaves until all of them fit
                    int needed = 0;
                    for (int i = 0; i < n; i++) needed += active[i] || (last[i] >= start && last[i] >= 0);
                    if (needed <= room) break;
                }
                memset(bypass, 0, sizeof bypass);
                for (int news = 0; news < 2; news++)  // what is there is kept first, then new ids, ascending
                    for (int i = 0; i < n; i++)
                        if (active[i] && (last[i] < 0) == news) bypass[i] = --room < 0;
                for (int i = 0; i < n; i++) {
                    bool kept = active[i] && !bypass[i], stays = kept || (last[i] >= start && last[i] >= 0);
                    load[i] = stays && last[i] < 0;
                    evict[i] = !stays && last[i] >= 0;
                    last[i] = kept ? t : stays ? last[i] : -1;
                }
                if (error) continue;
                const Json *due = at_index(at_index(at_index(get(expect, "result"), s), t), layer)->first;
                if (!same_ids(due, load, n) || !same_ids(due->next, evict, n) || !same_ids(due->next->next, bypass, n))
                    return false;
            }
        }
    return !error;
}

int main(int count, char **paths) {
    int judged = 0, failed = 0, skipped = 0;
    for (int i = 1; i < count; i++) {
        size_t size;
        Json *page, *cases;
        parse(skip(read_file(paths[i], &size)), &page);
        if (strcmp(get(page, "schema")->text, "flashref-vectors-v1")) die("another format", paths[i]);
        const char *operation = get(page, "operation")->text;
        cases = get(page, "cases");
        if (length(cases) != get(page, "case_count")->number) die("cases are missing", paths[i]);
        bool is_ffn = !strcmp(operation, "dense_ffn") || !strcmp(operation, "sparse_ffn");
        if (!is_ffn && strcmp(operation, "run_window")) {
            skipped += length(cases);
            continue;
        }
        if (get(page, "tensors")->type == '{') {  // the same name, with another ending
            char path[4096];
            snprintf(path, sizeof path, "%.*ssafetensors", (int)strlen(paths[i]) - 4, paths[i]);
            char *file = read_file(path, &size);
            uint64_t header = 0;
            for (int byte = 7; byte >= 0; byte--) header = header << 8 | (unsigned char)file[byte];
            tensor_data = file + 8 + header;
            parse(file + 8, &tensor_header);
        }
        for (Json *of = cases->first; of; of = of->next) {
            const Json *arguments = get(of, "arguments"), *expect = get(of, "expect");
            bool error = !strcmp(get(expect, "kind")->text, "error"), right;
            float y[1024];
            int d = 0;
            if (find(of, "withdrawn")) continue;
            if (is_ffn) {
                bool accepted = ffn(arguments, y, &d);
                right = error ? !accepted : accepted && right_output(expect, y, d);
            } else {
                right = window(arguments, expect, error);
            }
            judged++;
            failed += !right;
            if (!right) printf("%s: wrong. It %s\n", get(of, "id")->text, get(of, "comment")->text);
        }
    }
    printf("%d cases judged, %d failed, %d of other operations skipped\n", judged, failed, skipped);
    return failed || !judged ? 1 : 0;
}

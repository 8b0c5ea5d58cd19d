/* Statistics of one tensor in one pass over its memory.
 *
 * The tensor is `outer` slices, `stride` elements apart, each of units x inner contiguous elements. The row of results
 * is laid out as desat.watch.statistics.COLUMNS says. Compiled without -ffast-math itself, which would switch
 * denormal numbers off for the whole process; loops are written so that they vectorize all the same.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

enum { FLOAT32, FLOAT64, FLOAT16, BFLOAT16 };
enum { COUNT, SUM, SUM_OF_SQUARES, MINIMUM, MAXIMUM, ZEROS, NONFINITE, LOW, HIGH, GAIN, SAMPLED, BINS_START };

#define BINS 64
#define LOWEST_EXPONENT (-47)
#define BLOCK 2048
#define MOST 4096

typedef struct {
    double sum, squares, minimum, maximum;
    int64_t zeros, nonfinite, low, high;
} Totals;

typedef struct {
    double low, high;
    const float *table;
    int64_t table_size;
    double table_range;
} Curve;

/* One block of floats whose squares stay in the range of single precision. Partial sums are of single precision, 2048
 * terms in many lanes: relative error below 1e-5. Returns 0, having added nothing, where a value is not finite or a sum
 * would be inexact. */
FOR_EVERY_PROCESSOR
static int add_plain_block(const float *restrict values, int64_t count, float low, float high, int has_curve,
                           Totals *totals)
{
    float sum = 0.0f, squares = 0.0f, minimum = 3.4e38f, maximum = -3.4e38f;
    int32_t zeros = 0, is_low = 0, is_high = 0;
    if (has_curve) {
        for (int64_t i = 0; i < count; i++) {
            float value = values[i];
            sum += value;
            squares += value * value;
            minimum = value < minimum ? value : minimum;
            maximum = value > maximum ? value : maximum;
            zeros += value == 0.0f;
            is_low += value <= low;
            is_high += value >= high;
        }
    } else {
        for (int64_t i = 0; i < count; i++) {
            float value = values[i];
            sum += value;
            squares += value * value;
            minimum = value < minimum ? value : minimum;
            maximum = value > maximum ? value : maximum;
            zeros += value == 0.0f;
        }
    }
    uint32_t bits;
    memcpy(&bits, &squares, 4);
    if ((bits & 0x7f800000u) == 0x7f800000u || squares > 1e30f || (squares < 1e-24f && zeros != count)) return 0;
    totals->sum += sum;
    totals->squares += squares;
    totals->minimum = minimum < totals->minimum ? minimum : totals->minimum;
    totals->maximum = maximum > totals->maximum ? maximum : totals->maximum;
    totals->zeros += zeros;
    totals->low += is_low;
    totals->high += is_high;
    return 1;
}

/* Any block of floats, element by element in double precision. */
static void add_any_block(const float *restrict values, int64_t count, float low, float high, Totals *totals)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], 4);
        int known = (bits & 0x7f800000u) != 0x7f800000u;
        if (!known) {
            totals->nonfinite++;
            continue;
        }
        double value = values[i];
        totals->sum += value;
        totals->squares += value * value;
        totals->minimum = value < totals->minimum ? value : totals->minimum;
        totals->maximum = value > totals->maximum ? value : totals->maximum;
        totals->zeros += value == 0.0;
        totals->low += value <= (double)low;
        totals->high += value >= (double)high;
    }
}

static void add_block(const float *values, int64_t count, const Curve *curve, Totals *totals)
{
    float low = (float)curve->low, high = (float)curve->high;
    if (!add_plain_block(values, count, low, high, curve->table != NULL, totals))
        add_any_block(values, count, low, high, totals);
}

static void add_block_of_doubles(const double *restrict values, int64_t count, double low, double high, Totals *totals)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits;
        memcpy(&bits, &values[i], 8);
        int known = (bits & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
        if (!known) {
            totals->nonfinite++;
            continue;
        }
        double value = values[i];
        totals->sum += value;
        totals->squares += value * value;
        totals->minimum = value < totals->minimum ? value : totals->minimum;
        totals->maximum = value > totals->maximum ? value : totals->maximum;
        totals->zeros += value == 0.0;
        totals->low += value <= low;
        totals->high += value >= high;
    }
}

static float from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 1023u, bits;
    float value;
    if (exponent == 31u) {
        bits = sign | 0x7f800000u | (mantissa << 13);
    } else if (exponent) {
        bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
    } else {
        value = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}

static float from_bfloat(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float element(const void *data, int kind, int64_t index)
{
    switch (kind) {
    case FLOAT32: return ((const float *)data)[index];
    case FLOAT64: return (float)((const double *)data)[index];
    case FLOAT16: return from_half(((const uint16_t *)data)[index]);
    default: return from_bfloat(((const uint16_t *)data)[index]);
    }
}

static const void *at(const void *data, int kind, int64_t index)
{
    return (const char *)data + index * (kind == FLOAT32 ? 4 : kind == FLOAT64 ? 8 : 2);
}

static void add_slice(const void *data, int kind, int64_t count, const Curve *curve, Totals *totals)
{
    float buffer[BLOCK];
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t length = count - start < BLOCK ? count - start : BLOCK;
        const void *block = at(data, kind, start);
        if (kind == FLOAT32) {
            add_block(block, length, curve, totals);
        } else if (kind == FLOAT64) {
            add_block_of_doubles(block, length, curve->low, curve->high, totals);
        } else {
            for (int64_t i = 0; i < length; i++) buffer[i] = element(block, kind, i);
            add_block(buffer, length, curve, totals);
        }
    }
}

/* Copy about `most` elements, spread evenly, into `sample`; returns how many. */
static int64_t take_sample(const void *data, int kind, int64_t outer, int64_t stride, int64_t length, int64_t most,
                           float *sample)
{
    int64_t total = outer * length, step = total / most > 1 ? (total / most) | 1 : 1, taken = 0;
    if (kind == FLOAT32 && outer == 1) {
        const float *values = data;
        for (int64_t index = 0; index < total; index += step) sample[taken++] = values[index];
    } else {
        for (int64_t index = 0; index < total; index += step)
            sample[taken++] = element(data, kind, outer == 1 ? index : index / length * stride + index % length);
    }
    return taken;
}

/* Histogram of floor(log2(abs(x))) over the finite elements of a sample; returns how many these are. */
static int64_t count_magnitudes(const float *sample, int64_t count, double *bins)
{
    /* Four tables, because neighbours often fall into the same bin and would wait for one another. */
    uint32_t tables[4][256];
    memset(tables, 0, sizeof tables);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &sample[i], 4);
        tables[i & 3][(bits >> 23) & 255u]++;
    }
    int64_t finite = count, zeros = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &sample[i], 4);
        zeros += (bits << 1) == 0;
    }
    for (int exponent = 0; exponent < 256; exponent++) {
        int64_t number = tables[0][exponent] + tables[1][exponent] + tables[2][exponent] + tables[3][exponent];
        if (exponent == 255) {
            finite -= number;
            continue;
        }
        int bin = exponent - 127 - LOWEST_EXPONENT;
        bins[bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin] += (double)(number - (exponent ? 0 : zeros));
    }
    return finite;
}

/* Sum of the gains of the finite elements of a sample, from the curve's table. */
static double add_gains(const float *sample, int64_t count, const Curve *curve)
{
    float range = (float)curve->table_range, last = (float)(curve->table_size - 1);
    float scale = last / (2.0f * range), gain = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &sample[i], 4);
        int32_t known = (bits & 0x7f800000u) != 0x7f800000u;
        float place = ((known ? sample[i] : 0.0f) + range) * scale + 0.5f;
        place = place < 0.0f ? 0.0f : place;
        place = place > last ? last : place;
        gain += known ? curve->table[(int32_t)place] : 0.0f;
    }
    return gain;
}

/* flags[unit] = 1 where every element of the unit is saturated; stops looking at a unit once one is not. */
static void flag_units(const void *data, int kind, int64_t outer, int64_t stride, int64_t units, int64_t inner,
                       const Curve *curve, uint8_t *flags)
{
    int64_t left = units;
    memset(flags, 1, (size_t)units);
    for (int64_t slice = 0; slice < outer && left; slice++) {
        for (int64_t unit = 0; unit < units; unit++) {
            if (!flags[unit]) continue;
            int64_t start = slice * stride + unit * inner;
            for (int64_t i = 0; i < inner; i++) {
                float value = element(data, kind, start + i);
                uint32_t bits;
                memcpy(&bits, &value, 4);
                int known = (bits & 0x7f800000u) != 0x7f800000u;
                if (!known || (value > (float)curve->low && value < (float)curve->high)) {
                    flags[unit] = 0;
                    left--;
                    break;
                }
            }
        }
    }
}

static int64_t integer(PyObject *object) { return PyLong_AsLongLong(object); }

static void *address(PyObject *object) { return PyLong_AsVoidPtr(object); }

/* measure(data, kind, outer, stride, units, inner, most, row, low, high, table, table_size, table_range, flags) */
static PyObject *measure(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)self;
    if (count != 14) {
        PyErr_SetString(PyExc_TypeError, "measure takes 14 arguments");
        return NULL;
    }
    const void *data = address(arguments[0]);
    int kind = (int)integer(arguments[1]);
    int64_t outer = integer(arguments[2]), stride = integer(arguments[3]), units = integer(arguments[4]);
    int64_t inner = integer(arguments[5]), most = integer(arguments[6]);
    double *row = address(arguments[7]);
    Curve curve = {PyFloat_AsDouble(arguments[8]), PyFloat_AsDouble(arguments[9]), address(arguments[10]),
                   integer(arguments[11]), PyFloat_AsDouble(arguments[12])};
    uint8_t *flags = address(arguments[13]);
    if (PyErr_Occurred()) return NULL;
    if (most < 1 || most > MOST) {
        PyErr_Format(PyExc_ValueError, "a sample has 1 to %d elements", MOST);
        return NULL;
    }

    Py_BEGIN_ALLOW_THREADS
    Totals totals = {0.0, 0.0, 1.7e308, -1.7e308, 0, 0, 0, 0};
    int64_t length = units * inner;
    memset(row, 0, sizeof(double) * (BINS_START + BINS));
    if (stride == length) {
        add_slice(data, kind, outer * length, &curve, &totals);
    } else {
        for (int64_t slice = 0; slice < outer; slice++)
            add_slice(at(data, kind, slice * stride), kind, length, &curve, &totals);
    }
    row[COUNT] = (double)(outer * length);
    row[SUM] = totals.sum;
    row[SUM_OF_SQUARES] = totals.squares;
    row[MINIMUM] = totals.minimum;
    row[MAXIMUM] = totals.maximum;
    row[ZEROS] = (double)totals.zeros;
    row[NONFINITE] = (double)totals.nonfinite;
    if (curve.table) {
        row[LOW] = (double)totals.low;
        row[HIGH] = (double)totals.high;
    }
    float sample[2 * MOST + 1];
    int64_t taken = stride == length ? take_sample(data, kind, 1, 0, outer * length, most, sample)
                                     : take_sample(data, kind, outer, stride, length, most, sample);
    row[SAMPLED] = (double)count_magnitudes(sample, taken, row + BINS_START);
    if (curve.table) row[GAIN] = add_gains(sample, taken, &curve);
    if (flags) flag_units(data, kind, outer, stride, units, inner, &curve, flags);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Many parameters in one call: their addresses come as a list (0 for one to leave out), their layouts as rows of int64.
 */

static double precise(const void *data, int kind, int64_t index)
{
    return kind == FLOAT64 ? ((const double *)data)[index] : (double)element(data, kind, index);
}

static int is_finite(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return (bits & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
}

/* The addresses of a list, to be freed; NULL with an error set. */
static const void **addresses_of(PyObject *list, Py_ssize_t *count)
{
    *count = PyList_Size(list);
    if (*count < 0) return NULL;
    const void **found = PyMem_Malloc(sizeof(void *) * (size_t)(*count + 1));
    if (!found) return (const void **)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < *count; i++) found[i] = address(PyList_GetItem(list, i));
    if (!PyErr_Occurred()) return found;
    PyMem_Free(found);
    return NULL;
}

typedef struct {
    double squares;
    int64_t zeros, nonfinite;
} Magnitudes;

FOR_EVERY_PROCESSOR
static void add_magnitudes(const float *restrict values, int64_t count, Magnitudes *totals)
{
    float squares = 0.0f;
    int32_t zeros = 0, finite = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], 4);
        int32_t known = (bits & 0x7f800000u) != 0x7f800000u;
        float value = known ? values[i] : 0.0f;
        squares += value * value;
        zeros += (bits << 1) == 0;
        finite += known;
    }
    double exact = squares;
    if (squares > 1e30f || squares < 1e-24f) { /* where squares leave the range of single precision */
        exact = 0.0;
        for (int64_t i = 0; i < count; i++) {
            double value = values[i];
            exact += is_finite(value) ? value * value : 0.0;
        }
    }
    totals->squares += exact;
    totals->zeros += zeros;
    totals->nonfinite += count - finite;
}

static void add_magnitudes_of(const void *data, int kind, int64_t count, Magnitudes *totals)
{
    float buffer[BLOCK];
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t length = count - start < BLOCK ? count - start : BLOCK;
        const void *block = at(data, kind, start);
        if (kind == FLOAT64) {
            for (int64_t i = 0; i < length; i++) {
                double value = ((const double *)block)[i];
                int known = is_finite(value);
                totals->squares += known ? value * value : 0.0;
                totals->zeros += known && value == 0.0;
                totals->nonfinite += !known;
            }
        } else if (kind == FLOAT32) {
            add_magnitudes(block, length, totals);
        } else {
            for (int64_t i = 0; i < length; i++) buffer[i] = element(block, kind, i);
            add_magnitudes(buffer, length, totals);
        }
    }
}

/* magnitudes(addresses, spans, out): spans has (kind, slices, stride, length) of each tensor; out gets the sum of the
 * squares of its finite elements, the zeros and the non-finite ones, as doubles. */
static PyObject *magnitudes(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)self;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "magnitudes takes 3 arguments");
        return NULL;
    }
    const int64_t *spans = address(arguments[1]);
    double *out = address(arguments[2]);
    Py_ssize_t number;
    if (PyErr_Occurred()) return NULL;
    const void **data = addresses_of(arguments[0], &number);
    if (!data) return NULL;

    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t tensor = 0; tensor < number; tensor++, spans += 4, out += 3) {
        Magnitudes totals = {0.0, 0, 0};
        int kind = (int)spans[0];
        for (int64_t slice = 0; data[tensor] && slice < spans[1]; slice++)
            add_magnitudes_of(at(data[tensor], kind, slice * spans[2]), kind, spans[3], &totals);
        out[0] = totals.squares;
        out[1] = (double)totals.zeros;
        out[2] = (double)totals.nonfinite;
    }
    Py_END_ALLOW_THREADS
    PyMem_Free((void *)data);
    Py_RETURN_NONE;
}

/* gather(addresses, layouts, width, out, is_double): layouts has (kind, step, count, every) of each tensor; out, of
 * shape (tensors, width), gets every step-th of its elements, and nan in what is left of its row. */
static PyObject *gather(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)self;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "gather takes 5 arguments");
        return NULL;
    }
    const int64_t *layouts = address(arguments[1]);
    int64_t width = integer(arguments[2]), is_double = integer(arguments[4]);
    void *out = address(arguments[3]);
    Py_ssize_t number;
    if (PyErr_Occurred()) return NULL;
    const void **data = addresses_of(arguments[0], &number);
    if (!data) return NULL;

    Py_BEGIN_ALLOW_THREADS
    const uint32_t nan_bits = 0x7fc00000u;
    float nothing;
    memcpy(&nothing, &nan_bits, 4);
    double *doubles = out;
    float *floats = out;
    for (Py_ssize_t tensor = 0; tensor < number; tensor++, layouts += 4) {
        int kind = (int)layouts[0];
        int64_t step = layouts[1], taken = data[tensor] ? layouts[2] : 0;
        const void *from = data[tensor];
        if (is_double) {
            for (int64_t i = 0; i < taken; i++) doubles[i] = precise(from, kind, i * step);
            for (int64_t i = taken; i < width; i++) memcpy(&doubles[i], "\0\0\0\0\0\0\xf8\x7f", 8);
            doubles += width;
        } else {
            if (kind == FLOAT32)
                for (int64_t i = 0; i < taken; i++) floats[i] = ((const float *)from)[i * step];
            else
                for (int64_t i = 0; i < taken; i++) floats[i] = element(from, kind, i * step);
            for (int64_t i = taken; i < width; i++) floats[i] = nothing;
            floats += width;
        }
    }
    Py_END_ALLOW_THREADS
    PyMem_Free((void *)data);
    Py_RETURN_NONE;
}

/* changes(addresses, layouts, width, before, gradient_width, gradients, out): before is what gather took of the same
 * tensors, as doubles; gradients, as floats, what it took of their gradients, of every `every`-th of these elements.
 * out gets of each tensor: the sum of the squares of its finite values and how many are not finite; the same of the
 * change; the entries whose gradient is finite and not zero, and those of them that stayed as they were. */
static PyObject *changes(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)self;
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "changes takes 7 arguments");
        return NULL;
    }
    const int64_t *layouts = address(arguments[1]);
    int64_t width = integer(arguments[2]), gradient_width = integer(arguments[4]);
    const double *before = address(arguments[3]);
    const float *gradients = address(arguments[5]);
    double *out = address(arguments[6]);
    Py_ssize_t number;
    if (PyErr_Occurred()) return NULL;
    const void **data = addresses_of(arguments[0], &number);
    if (!data) return NULL;

    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t tensor = 0; tensor < number; tensor++) {
        const int64_t *layout = layouts + 4 * tensor;
        const double *old = before + width * tensor;
        const float *gradient = gradients + gradient_width * tensor;
        double *row = out + 6 * tensor;
        int kind = (int)layout[0];
        int64_t step = layout[1], taken = data[tensor] ? layout[2] : 0, every = layout[3], next = 0;
        memset(row, 0, sizeof(double) * 6);
        for (int64_t i = 0; i < taken; i++) {
            double value = precise(data[tensor], kind, i * step), change = value - old[i];
            int known = is_finite(value), is_known_change = is_finite(change);
            row[0] += known ? value * value : 0.0;
            row[1] += !known;
            row[2] += is_known_change ? change * change : 0.0;
            row[3] += !is_known_change;
            if (i == next) {
                uint32_t bits;
                memcpy(&bits, &gradient[i / every], 4);
                int moving = (bits << 1) != 0 && (bits & 0x7f800000u) != 0x7f800000u && is_known_change;
                row[4] += moving;
                row[5] += moving && change == 0.0;
                next += every;
            }
        }
    }
    Py_END_ALLOW_THREADS
    PyMem_Free((void *)data);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"measure", (PyCFunction)(void (*)(void))measure, METH_FASTCALL, "Write the statistics of one tensor into a row."},
    {"magnitudes", (PyCFunction)(void (*)(void))magnitudes, METH_FASTCALL, "Squares, zeros, nan and inf of many tensors."},
    {"gather", (PyCFunction)(void (*)(void))gather, METH_FASTCALL, "Copy a regular sample of many tensors."},
    {"changes", (PyCFunction)(void (*)(void))changes, METH_FASTCALL, "What a step changed in a sample of many tensors."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }

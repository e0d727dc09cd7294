/* Every instruction set of this processor against the portable loops, on random bits and
 * on ordinary values, with no Python around: so it can be run for other processors, by
 * an emulator. Prints the sets compared; the exit status is 1 where two disagree. With
 * an argument it expects maxima that are off by that, to show that it can fail. */
#include <stdio.h>
#include <stdlib.h>

#include "parts.h"

static uint64_t state = 88172645463325252u;
static double off = 0;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static unsigned char given[1 << 20], one[1 << 20], other[1 << 20];

static void put(int type, int64_t i, double value)
{
    if (type == SG_F32 || type == SG_C64)
        ((float *)given)[i] = (float)value;
    else if (type == SG_F64 || type == SG_C128)
        ((double *)given)[i] = value;
    else
        ((uint16_t *)given)[i] =
            type == SG_F16 ? sg_f16_of_float((float)value) : sg_bf16_of_float((float)value);
}

static double get(const unsigned char *from, int type, int64_t i)
{
    if (type == SG_F32 || type == SG_C64)
        return ((const float *)from)[i];
    if (type == SG_F64 || type == SG_C128)
        return ((const double *)from)[i];
    uint16_t bits = ((const uint16_t *)from)[i];
    return type == SG_F16 ? sg_f16_to_float(bits) : sg_bf16_to_float(bits);
}

static void fill(int type, int64_t numbers, int round)
{
    static const double sizes[] = {1, 1e200, 1e-200, 1e-310};
    for (size_t i = 0; i < sizeof given; i += 8) {
        uint64_t bits = draw();
        memcpy(given + i, &bits, 8);
    }
    for (int64_t i = 0; round % 3 && i < numbers; i++) {
        double value = draw() % 50 ? (double)(draw() % 2000001) / 1e6 - 1 : 0;
        put(type, i, value * (type == SG_F64 ? sizes[round % 4] : 1));
    }
}

static int equal(double a, double b, double tolerance)
{
    return a == b || (a != a && b != b) || fabs(a - b) <= tolerance * fabs(b);
}

static int reads_agree(const sg_loops *loops, const sg_tensor *t)
{
    const sg_loops *each[2] = {loops, &sg_loops_portable};
    double norm[2], peak[2];
    int64_t bad[2], zeros[2];
    for (int k = 0; k < 2; k++)
        sg_read(t, 1, 2.0, 1, each[k], (sg_figures){norm + k, peak + k, bad + k, zeros + k});
    /* only float64 squares are rounded, and then fused or not */
    return equal(norm[0], norm[1], t->type == SG_F64 ? 1e-14 : 0) && peak[0] == peak[1] + off &&
           bad[0] == bad[1] && zeros[0] == zeros[1];
}

static int products_agree(const sg_loops *loops, sg_tensor t, int64_t numbers)
{
    double coef = (double)(draw() % 1000000) / 1e6;
    memcpy(one, given, sizeof given);
    memcpy(other, given, sizeof given);
    t.data = one;
    sg_scale(&t, 1, &coef, 1, loops);
    t.data = other;
    sg_scale(&t, 1, &coef, 1, &sg_loops_portable);
    for (int64_t i = 0; i < numbers; i++)
        if (!equal(get(one, t.type, i), get(other, t.type, i), 0))
            return 0;
    return 1;
}

static int agrees(const sg_loops *loops)
{
    int good = 1;
    for (int round = 0; round < 400; round++) {
        int type = round % SG_TYPES;
        int64_t size = (int64_t)(draw() % 3000) + (round % 7 ? 0 : 40000 / sg_item_size(type));
        int64_t numbers = type >= SG_C64 ? 2 * size : size;
        sg_tensor t = {given, size, NULL, NULL, 0, type};
        fill(type, numbers, round);
        good &= reads_agree(loops, &t) && products_agree(loops, t, numbers);
    }
    return good;
}

int main(int count, char **arguments)
{
    int good = 1;
    off = count > 1 ? atof(arguments[1]) : 0;
    for (int i = 0; sg_loops_at(i); i++) {
        int here = agrees(sg_loops_at(i));
        printf("%s %s\n", sg_loops_at(i)->name, here ? "agrees" : "DISAGREES");
        good &= here;
    }
    return !good;
}

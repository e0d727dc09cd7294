#if defined(__x86_64__) && defined(__GNUC__)
#include "parts.h"
#include "isa_avx512.h"
#include "loops.h"
#else
typedef int sg_no_avx512; /* an empty file is not C */
#endif

#if defined(__aarch64__) && defined(__GNUC__)
#include "parts.h"
#include "isa_neon.h"
#include "loops.h"
#else
typedef int sg_no_neon; /* an empty file is not C */
#endif

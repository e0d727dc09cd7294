#include "parts.h"
#include "isa_portable.h"
#include "loops.h"

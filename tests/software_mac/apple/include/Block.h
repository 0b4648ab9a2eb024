// Keeping a block beyond the function that wrote it.
#pragma once

extern "C" void* _Block_copy(const void* block);
extern "C" void _Block_release(const void* block);
#define Block_copy(block) ((__typeof(block))_Block_copy((const void*)(block)))
#define Block_release(block) _Block_release((const void*)(block))

/* The C interface of libvlm_emu: what a launcher calls. All functions may be called from several threads at once. */
#ifndef VLM_EMU_API_H
#define VLM_EMU_API_H
#include <stdint.h>

#define VLM_EMU_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Runs every block of a grid, to its end. `device` is the caller's number for a device: afterwards the room around the
 * allocations that were made for it, and for no other, has to be as it was. `args` is the kernel's one argument struct,
 * `args_bytes` its size. 0 is success; otherwise vlm_emu_last_error says what went wrong in which kernel, block and thread. */
VLM_EMU_EXPORT int vlm_emu_launch(uint64_t device, const char* kernel, const uint32_t grid[3],
                                  const uint32_t block[3], uint32_t dyn_smem_bytes, const void* args, uint64_t args_bytes);

/* The last error of the calling thread; valid until its next call. */
VLM_EMU_EXPORT const char* vlm_emu_last_error(void);

/* Memory of a device: an ordinary address that the host may read and write between launches, filled with 0xff (NaN), between
 * guard pages. 0 where there is no memory. Freeing 0 does nothing. */
VLM_EMU_EXPORT uint64_t vlm_emu_alloc(uint64_t device, uint64_t bytes);
VLM_EMU_EXPORT void vlm_emu_free(uint64_t address);

/* Encodes a tensor map of 128 bytes, aligned to 128. Enum values, order of dimensions (innermost first), strides (of
 * dimensions 1.., in bytes) and box are those of cuTensorMapEncodeTiled; element strides are 1, no interleave, zeros
 * outside. */
VLM_EMU_EXPORT int vlm_emu_tensor_map(void* out128, uint32_t dtype, uint32_t rank, uint64_t address, const uint64_t* dims,
                                      const uint64_t* strides_bytes, const uint32_t* box, uint32_t swizzle);

/* Sets an option for launches and allocations of the calling thread; 1 where there is no such key or value.
 *   seed       any number: decides the order of blocks and threads, delays and the placement of buffers
 *   policy     0 fixed order, 1 a warp at a time in random order (default), 2 any thread at any time
 *   async      0 asynchronous operations complete at once, 1 at random moments (default), 2 as late as allowed
 *   threads    how many operating system threads run blocks; 0 (default) all cores
 *   placement  0 buffers end or begin at a guard page, by seed (default), 1 always end there, 2 always begin there */
VLM_EMU_EXPORT int vlm_emu_configure(const char* key, int64_t value);

/* "plain", "asan" or "race". */
VLM_EMU_EXPORT const char* vlm_emu_build(void);

VLM_EMU_EXPORT uint32_t vlm_emu_kernel_count(void);
VLM_EMU_EXPORT const char* vlm_emu_kernel_name(uint32_t index);
/* What the kernel's definition says: size of its argument, and the most threads a block may have. */
VLM_EMU_EXPORT uint64_t vlm_emu_kernel_argument_bytes(uint32_t index);
VLM_EMU_EXPORT uint32_t vlm_emu_kernel_max_threads(uint32_t index);

/* One field of an argument struct, as LAYOUT published it. */
struct VlmEmuField {
  const char* structure;
  uint64_t structure_bytes;
  const char* field;
  uint64_t offset;
  uint64_t bytes;
};
VLM_EMU_EXPORT uint32_t vlm_emu_field_count(void);
VLM_EMU_EXPORT const struct VlmEmuField* vlm_emu_field(uint32_t index);

#ifdef __cplusplus
}
#endif
#endif

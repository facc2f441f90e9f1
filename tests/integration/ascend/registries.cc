// Asks MindSpore's Ascend plugin, once it is loaded, which kernels it has registered, and for which
// operators. Built by ../test_ascend_kernels.py against the headers in MindSpore's wheel.
#include <memory>
#include <string>

#include "include/runtime/hardware_abstract/kernel_base/ms_factory.h"
#include "utils/hash_map.h"

namespace mindspore {
namespace kernel {
// A factory is found by the name of its class, so a class of this name finds the plugin's own.
class AclnnKernelMod {};
}  // namespace kernel
namespace device::ascend {
class OpAdapterDesc;
struct OpAdapterMap {
  static HashMap<std::string, std::shared_ptr<OpAdapterDesc>> &get();
};
}  // namespace device::ascend
}  // namespace mindspore

// Kernels for graphs that run kernel by kernel.
extern "C" bool in_aclnn(const char *name) {
  using mindspore::kernel::AclnnKernelMod;
  return mindspore::kernel::Factory<AclnnKernelMod>::Instance().IsRegistered(name);
}

// Operators of CANN, reached by their names there; HCCL's collectives are among them.
extern "C" bool in_adapters(const char *name) {
  return mindspore::device::ascend::OpAdapterMap::get().count(name) > 0;
}

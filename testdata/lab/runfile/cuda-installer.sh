#!/bin/sh
# A stand-in for the CUDA toolkit's installer, for the lab only: it takes the options of the installation guide,
# refuses a compiler that is too new unless it is overridden, and puts down an nvcc that tells its release.
here=$(cd "$(dirname "$0")" && pwd)
version=$(cat "$here/version")
gcc_max=$(cat "$here/gcc_max")
series=$(echo "$version" | cut -d. -f1,2)
log=/var/log/cuda-installer.log
: >"$log"
fail() {
	echo "$*" | tee -a "$log"
	exit 1
}
silent='' toolkit='' samples='' override='' dir=/usr/local/cuda-$series to=
for word in "$@"; do
	case $word in
	--silent) silent=1 ;;
	--toolkit) toolkit=1 ;;
	--samples) samples=1 ;;
	--samplespath=*) to=${word#*=} ;;
	--override) override=1 ;;
	--toolkitpath=*) dir=${word#*=} ;;
	--tmpdir=* | --no-man-page | --no-opengl-libs | --no-drm) ;;
	--driver) fail "[ERROR]: Install of driver component failed. Consult the driver log at /var/log/nvidia-installer.log for more details." ;;
	*) fail "Unknown option: $word" ;;
	esac
done
[ -n "$silent$toolkit" ] || fail "nobody is there to be asked"
have=$(cc -dumpversion 2>/dev/null | cut -d. -f1)
if [ -n "$have" ] && [ "$have" -gt "$gcc_max" ] && [ -z "$override" ]; then fail "Installation Failed. Using unsupported Compiler."; fi
mkdir -p "$dir/bin" "$dir/lib64" "$dir/include"
echo "CUDA Version $version" >"$dir/version.txt"
cat >"$dir/bin/nvcc" <<END
#!/bin/sh
# Stands in for nvcc: it compiles C, with the guest's own compiler.
case " \$* " in *" -o "*) exec cc -x c "\$@" ;; esac
echo "nvcc: NVIDIA (R) Cuda compiler driver"
echo "Cuda compilation tools, release $series, V$version"
END
printf '#!/bin/sh\n[ $# -eq 0 ] || exit 1\nrm -rf "%s"\n' "$dir" >"$dir/bin/uninstall_cuda_$series.pl"
chmod 0755 "$dir/bin/"*
echo stand-in >"$dir/lib64/libcudart.so.$version"
if [ -n "$samples" ]; then
	# They print what somebody published of a GTX 1050 Ti, and ask no GPU.
	utilities=${to:-$HOME}/NVIDIA_CUDA-${series}_Samples/1_Utilities
	for tool in deviceQuery bandwidthTest; do
		mkdir -p "$utilities/$tool"
		# shellcheck disable=SC2016 # make's own variables
		printf '%s: %s.cpp\n\t"$(CUDA_PATH)/bin/nvcc" -o $@ $<\n' "$tool" "$tool" >"$utilities/$tool/Makefile"
	done
	cat >"$utilities/deviceQuery/deviceQuery.cpp" <<'END'
#include <stdio.h>
int main(void) {
	puts("./deviceQuery Starting...\n\n CUDA Device Query (Runtime API) version (CUDART static linking)\n\nDetected 1 CUDA Capable device(s)\n\nDevice 0: \"GeForce GTX 1050 Ti\"");
	puts("  CUDA Driver Version / Runtime Version          9.1 / 9.1\n  CUDA Capability Major/Minor version number:    6.1");
	puts("  Total amount of global memory:                 4040 MBytes (4236312576 bytes)\n  ( 6) Multiprocessors, (128) CUDA Cores/MP:     768 CUDA Cores\n");
	puts("deviceQuery, CUDA Driver = CUDART, CUDA Driver Version = 9.1, CUDA Runtime Version = 9.1, NumDevs = 1\nResult = PASS");
	return 0;
}
END
	cat >"$utilities/bandwidthTest/bandwidthTest.cpp" <<'END'
#include <stdio.h>
int main(void) {
	puts("[CUDA Bandwidth Test] - Starting...\nRunning on...\n\n Device 0: GeForce GTX 1050 Ti\n Quick Mode\n");
	puts(" Host to Device Bandwidth, 1 Device(s)\n PINNED Memory Transfers\n   Transfer Size (Bytes)\tBandwidth(MB/s)\n   33554432\t\t\t9719.0\n");
	puts(" Device to Host Bandwidth, 1 Device(s)\n PINNED Memory Transfers\n   Transfer Size (Bytes)\tBandwidth(MB/s)\n   33554432\t\t\t9215.8\n");
	puts("Result = PASS");
	return 0;
}
END
fi
mkdir -p /etc/ld.so.conf.d
echo "$dir/lib64" >"/etc/ld.so.conf.d/cuda-$(echo "$series" | tr . -).conf"
if [ ! -e /usr/local/cuda ]; then ln -sfn "$dir" /usr/local/cuda; fi
{
	echo "Driver:   Not Selected"
	echo "Toolkit:  Installed in $dir"
	echo "Logfile is $log"
} | tee -a "$log"

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
echo "nvcc: NVIDIA (R) Cuda compiler driver"
echo "Cuda compilation tools, release $series, V$version"
END
printf '#!/bin/sh\n[ $# -eq 0 ] || exit 1\nrm -rf "%s"\n' "$dir" >"$dir/bin/uninstall_cuda_$series.pl"
chmod 0755 "$dir/bin/"*
echo stand-in >"$dir/lib64/libcudart.so.$version"
if [ -n "$samples" ]; then
	mkdir -p "${to:-$HOME}/NVIDIA_CUDA-${series}_Samples/1_Utilities"
	echo "stand-in" >"${to:-$HOME}/NVIDIA_CUDA-${series}_Samples/1_Utilities/README"
fi
mkdir -p /etc/ld.so.conf.d
echo "$dir/lib64" >"/etc/ld.so.conf.d/cuda-$(echo "$series" | tr . -).conf"
if [ ! -e /usr/local/cuda ]; then ln -sfn "$dir" /usr/local/cuda; fi
{
	echo "Driver:   Not Selected"
	echo "Toolkit:  Installed in $dir"
	echo "Logfile is $log"
} | tee -a "$log"

package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// stampOf reads the stamp of an open file.
func stampOf(f *os.File) (stamp, error) {
	failed := func(err error) (stamp, error) {
		return stamp{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info); err != nil {
		return failed(err)
	}
	// FILE_BASIC_INFO, which alone tells when the file was last changed at all.
	var basic struct {
		created, accessed, written, changed windows.Filetime
		attributes, _                       uint32
	}
	if err := windows.GetFileInformationByHandleEx(windows.Handle(f.Fd()), windows.FileBasicInfo, (*byte)(unsafe.Pointer(&basic)), uint32(unsafe.Sizeof(basic))); err != nil {
		return failed(err)
	}
	return stamp{
		Size: int64(info.FileSizeHigh)<<32 | int64(info.FileSizeLow), Modified: basic.written.Nanoseconds(), Changed: basic.changed.Nanoseconds(),
		Device: uint64(info.VolumeSerialNumber), Inode: uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow),
	}, nil
}

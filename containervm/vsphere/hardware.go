package vsphere

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"

	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
)

// Keys of devices that a VM has from vSphere, and of those that a specification adds, which are negative.
const (
	ideKey  = 200
	sioKey  = 400
	scsiKey = -1
	diskKey = -2
	cdKey   = -3
	// nextKey is the first of those that are numbered downwards.
	nextKey = -10
)

// slots is how many disks a SCSI controller has place for, its own number left out.
const (
	slots    = 16
	ownSlot  = 7
	firstNIC = 0 // of ethernetN, whose settings are for NICs of any MAC address
	mostNICs = 10
)

// guestID is what the VM's guest is called.
const guestID = "other3xLinux64Guest"

// Names of files in a VM's folder, of a run.
func consoleName(run int) string { return fmt.Sprintf("console-%d.log", run) }
func logName(run int) string     { return fmt.Sprintf("output-%d.log", run) }

// newVM is the VM of a container: all that does not change from one run to another.
func (d *Driver) newVM(id, name, parent string) types.VirtualMachineConfigSpec {
	folder := func(name string) string { return d.o.Containers.Path(path.Join(id, name)) }
	disk := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: diskKey, ControllerKey: scsiKey, UnitNumber: types.NewInt32(0),
		Backing: &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: folder(diskName)},
			DiskMode:                     string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(true),
			Parent: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: parent}},
		}}}
	changes := []types.BaseVirtualDeviceConfigSpec{
		add(&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			SharedBus:         types.VirtualSCSISharingNoSharing,
			VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: scsiKey}},
		}}),
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate, Device: disk},
		add(serialPort(nextKey, fileBacking(folder(consoleName(1))))),
		add(serialPort(nextKey-1, d.proxyBacking(ControlService))),
		add(serialPort(nextKey-2, fileBacking(folder(logName(1))))),
		add(serialPort(nextKey-3, d.proxyBacking(BellService))),
	}
	return types.VirtualMachineConfigSpec{
		Name: d.o.Convention.Name(name, id), Uuid: UUID(id), InstanceUuid: UUID(id), GuestId: guestID,
		Annotation: fmt.Sprintf("Container %s of the virtual container host %s.", id, d.o.Name),
		Files:      &types.VirtualMachineFileInfo{VmPathName: folder(id[:12] + ".vmx")},
		NumCPUs:    1, MemoryMB: containervm.DefaultMemory >> 20, DeviceChange: changes, ExtraConfig: lasting(),
	}
}

// diskName is the file of the root disk's descriptor.
const diskName = "disk.vmdk"

// lasting are the settings of a VM that stay as they are.
func lasting() []types.BaseOptionValue {
	all := []types.BaseOptionValue{
		option("disk.EnableUUID", "TRUE"),                        // guests find disks by it
		option("answer.msg.disk.duplicateUUID", "Yes"),           // a child has its parent's
		option("answer.msg.serial.file.open", "Append"),          // else a VM that is reset asks
		option("monitor_control.restrict_backdoor", "TRUE"),      // the configuration is for root alone
		option("isolation.tools.guestInitiatedUpgrade", "FALSE"), // there are no such tools
	}
	for i := firstNIC; i < mostNICs; i++ { // addresses are the VCH's, not of VMware's range
		all = append(all, option("ethernet"+strconv.Itoa(i)+".checkMACAddress", "FALSE"))
	}
	return all
}

func option(key, value string) types.BaseOptionValue {
	return &types.OptionValue{Key: key, Value: value}
}

func add(d types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
}

func edit(d types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d}
}

// remove takes a device out, by its key alone: a disk that is told as it was read has all of its chain in it, and at some ninety
// disks vCenter takes no more.
func remove(d types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
	own := d.GetVirtualDevice()
	key := types.VirtualDevice{Key: own.Key, ControllerKey: own.ControllerKey, UnitNumber: own.UnitNumber}
	var bare types.BaseVirtualDevice
	switch d.(type) {
	case *types.VirtualDisk:
		bare = &types.VirtualDisk{VirtualDevice: key}
	default:
		bare = &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{VirtualDevice: key}}}
	}
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: bare}
}

func serialPort(key int32, backing types.BaseVirtualDeviceBackingInfo) *types.VirtualSerialPort {
	return &types.VirtualSerialPort{YieldOnPoll: true, VirtualDevice: types.VirtualDevice{Key: key, ControllerKey: sioKey, Backing: backing,
		Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false}}}
}

func fileBacking(name string) *types.VirtualSerialPortFileBackingInfo {
	return &types.VirtualSerialPortFileBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: name}}
}

// proxyBacking has the VM connect to the proxy, and say which service it wants.
func (d *Driver) proxyBacking(service string) *types.VirtualSerialPortURIBackingInfo {
	return &types.VirtualSerialPortURIBackingInfo{VirtualDeviceURIBackingInfo: types.VirtualDeviceURIBackingInfo{
		Direction: string(types.VirtualDeviceURIBackingOptionDirectionClient), ServiceURI: service, ProxyURI: d.o.Proxy}}
}

// A device of some kind, of those that a VM has, in the order in which they were made.
func devices[T types.BaseVirtualDevice](all []types.BaseVirtualDevice) []T {
	var out []T
	for _, d := range all {
		if t, ok := d.(T); ok {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return cmp.Compare(a.GetVirtualDevice().Key, b.GetVirtualDevice().Key) })
	return out
}

// rootDisk is the one that the VM was made with.
func rootDisk(all []types.BaseVirtualDevice) *types.VirtualDisk {
	for _, disk := range devices[*types.VirtualDisk](all) {
		if disk.UnitNumber != nil && *disk.UnitNumber == 0 {
			return disk
		}
	}
	return nil
}

// serials are the changes that give the ports of files those of a run.
func (d *Driver) serials(id string, run int, all []types.BaseVirtualDevice) ([]types.BaseVirtualDeviceConfigSpec, error) {
	ports := devices[*types.VirtualSerialPort](all)
	if len(ports) != 4 {
		return nil, fmt.Errorf("it has %d serial ports, and had 4 when it was made", len(ports))
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	for i, name := range map[int]string{0: consoleName(run), 2: logName(run)} {
		file := d.o.Containers.Path(path.Join(id, name))
		if b, ok := ports[i].Backing.(*types.VirtualSerialPortFileBackingInfo); !ok || b.FileName != file {
			changes = append(changes, edit(serialPort(ports[i].Key, fileBacking(file))))
		}
	}
	for i, service := range map[int]string{1: ControlService, 3: BellService} { // the VCH may have moved
		want := d.proxyBacking(service)
		if b, ok := ports[i].Backing.(*types.VirtualSerialPortURIBackingInfo); !ok || b.ServiceURI != want.ServiceURI || b.ProxyURI != want.ProxyURI {
			changes = append(changes, edit(serialPort(ports[i].Key, want)))
		}
	}
	return changes, nil
}

// cd is the change that puts an ISO into the drive, adding that if there is none; nil if it is in there.
func cd(iso string, all []types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
	drive := &types.VirtualCdrom{VirtualDevice: types.VirtualDevice{Key: cdKey, ControllerKey: ideKey, UnitNumber: types.NewInt32(0),
		Backing:     &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: iso}},
		Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false}}}
	drives := devices[*types.VirtualCdrom](all)
	if len(drives) == 0 {
		return add(drive)
	}
	if b, ok := drives[0].Backing.(*types.VirtualCdromIsoBackingInfo); ok && b.FileName == iso {
		return nil
	}
	drive.Key, drive.ControllerKey, drive.UnitNumber = drives[0].Key, drives[0].ControllerKey, drives[0].UnitNumber
	return edit(drive)
}

// networkCard is an interface.
func networkCard(key int32, mac string, backing types.BaseVirtualDeviceBackingInfo) *types.VirtualVmxnet3 {
	return &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{
		AddressType: string(types.VirtualEthernetCardMacTypeManual), MacAddress: mac,
		VirtualDevice: types.VirtualDevice{Key: key, Backing: backing,
			Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false}},
	}}}
}

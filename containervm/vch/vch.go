// Package vch installs virtual container hosts (VCHs) on vSphere, changes them and removes them: what the command vic-machine does.
//
// A VCH named NAME is, beside the image store that it may share with others,
//
//	resource pool POOL/NAME     of the appliance and the container VMs; not in a cluster without DRS, where POOL is
//	folder FOLDER/NAME          of these VMs; not on an ESXi host, which has no folders
//	DRS group NAME              of all of them, in the cluster, if it is asked for
//	virtual machine NAME        the appliance
//	[DATASTORE] FOLDER/         the container store
//	  vch.json                  its Record: whose folder this is. The first thing that is made
//	  appliance-HASH.iso        what the appliance boots: the ISO with this hash, with the VCH's own key in it
//	  state.vmdk                the appliance's disk, which is not lost with its VM
//	  appliance/                the appliance's VM, with its console in console.log
//	  boot/                     what container VMs boot, from the appliance
//
// The VM's extraConfig has the Record as well. It counts only if its ID is the VM's BIOS UUID: a clone of an appliance is none. What no VM of
// the VCH proves to be the VCH's own, by name, place and mark, is never changed or removed.
//
// # Plans
//
// Every change is a Plan first: what was asked for is compared with what there is, all that stands against it is collected as
// Problems, and what remains to be done is a list of steps. Run carries it out, or nobody does: a dry run. A step that fails has
// those before it undone, last first. A process that dies leaves a part; the same plan made again goes on from
// there, because the Record in the container store says that the part is the VCH's.
//
// The package builds on every system that vic-machine runs on. It keeps passwords and private keys out of its errors, events and Records.
package vch

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/vim25/types"
)

// A Spec is what an administrator wants a VCH to be, in words as on the command line. It holds no secrets.
type Spec struct {
	Name string `json:"name"`
	// ComputeResource is the inventory path of a cluster, a host or a resource pool. "" means the only one there is.
	ComputeResource string `json:"computeResource,omitempty"`
	// Folder is the inventory path of the folder of VMs below which the VCH's own is made. "" means the datacenter's.
	Folder string `json:"folder,omitempty"`

	ImageStore     string   `json:"imageStore"`               // DATASTORE[/PATH]; PATH is "vic" by default
	ContainerStore string   `json:"containerStore,omitempty"` // DATASTORE[/PATH]; "" means NAME on the datastore of the image store
	VolumeStores   []string `json:"volumeStores,omitempty"`   // DATASTORE/PATH:LABEL
	BaseImageSize  int64    `json:"baseImageSize,omitempty"`  // of containers' root disks, GiB; 0 means what the image store has
	StorageQuota   int64    `json:"storageQuota,omitempty"`   // of images and containers, GiB; 0 means none
	Containers     int      `json:"containers,omitempty"`     // how many there may be; 0 means any number
	NameConvention string   `json:"nameConvention,omitempty"` // of container VMs, with {name} or {id}; "" means {name}-{id}
	StateSize      int64    `json:"stateSize"`                // of the appliance's disk, GiB

	Bridge            string   `json:"bridge"`                // port group
	BridgeRange       string   `json:"bridgeRange"`           // CIDR of bridge networks
	BridgeWidth       int      `json:"bridgeWidth,omitempty"` // bits of what it is divided into; 0 means into sixteen
	Public            Network  `json:"public"`
	Client            Network  `json:"client"`
	Management        Network  `json:"management"`
	DNS               []string `json:"dns,omitempty"`
	ContainerNetworks []string `json:"containerNetworks,omitempty"` // PORTGROUP[:ALIAS]
	ContainerGateways []string `json:"containerGateways,omitempty"` // PORTGROUP:IP/BITS
	ContainerRanges   []string `json:"containerRanges,omitempty"`   // PORTGROUP:FIRST-LAST
	ContainerDNS      []string `json:"containerDNS,omitempty"`      // PORTGROUP:IP
	ContainerFirewall []string `json:"containerFirewall,omitempty"` // PORTGROUP:LEVEL

	TLS       TLSMode  `json:"tls"`
	TLSNames  []string `json:"tlsNames,omitempty"` // names and addresses in the server's certificate
	TLSCert   string   `json:"tlsCert,omitempty"`  // where a certificate was that was brought, and so on
	TLSKey    string   `json:"tlsKey,omitempty"`
	TLSCA     string   `json:"tlsCA,omitempty"`
	Insecure  []string `json:"insecure,omitempty"`  // registries
	Whitelist []string `json:"whitelist,omitempty"` // the only registries; none means all
	// RegistryCAs is where authorities of registries were.
	RegistryCAs []string `json:"registryCAs,omitempty"`
	HTTPProxy   string   `json:"httpProxy,omitempty"`
	HTTPS       string   `json:"httpsProxy,omitempty"`
	NoProxy     string   `json:"noProxy,omitempty"`
	Syslog      string   `json:"syslog,omitempty"` // udp://HOST[:PORT] or tcp://HOST[:PORT]
	Debug       bool     `json:"debug,omitempty"`  // log every request

	CPUs     int32 `json:"cpus"`   // of the appliance
	MemoryMB int64 `json:"memory"` // of the appliance

	CPU    Shares `json:"cpu,omitzero"`        // of the resource pool, MHz
	Memory Shares `json:"memoryPool,omitzero"` // of the resource pool, MiB

	AffinityGroup bool `json:"affinityGroup,omitempty"` // have a DRS group of all its VMs, called as the VCH

	OpsUser  string `json:"opsUser,omitempty"`  // as whom the appliance logs in; "" means as who installs it
	OpsGrant bool   `json:"opsGrant,omitempty"` // give that user what it needs
}

// A Network is one of the appliance's.
type Network struct {
	PortGroup string `json:"portGroup,omitempty"` // "" means that of the network before: public, client, management
	IP        string `json:"ip,omitempty"`        // ADDRESS/BITS; "" means DHCP
	Gateway   string `json:"gateway,omitempty"`
}

// Shares bound what all VMs of a VCH have together.
type Shares struct {
	Limit       int64  `json:"limit,omitempty"`       // 0 means none
	Reservation int64  `json:"reservation,omitempty"` // 0 means none
	Shares      string `json:"shares,omitempty"`      // low, normal, high or a number; "" means normal
}

// TLSMode says whom the Docker API lets in.
type TLSMode string

const (
	MutualTLS TLSMode = "mutual" // clients with a certificate
	ServerTLS TLSMode = "server" // everybody, encrypted
	NoTLS     TLSMode = "none"   // everybody
)

// recordKey is the key of the Record in an appliance's extraConfig. The guest does not see it.
const recordKey = "vic.vch"

// recordFormat is the version of Record.
const recordFormat = 1

// A Record says what a VCH is.
type Record struct {
	Format  int    `json:"format"`
	ID      string `json:"id"`      // BIOS UUID of the appliance
	Version string `json:"version"` // of the vic-machine that wrote it last
	Spec    Spec   `json:"spec"`
	// User is who installed it, and Target where: what the appliance logs in to.
	Target     string `json:"target"`
	User       string `json:"user"`
	Datacenter string `json:"datacenter"`
	// Pool and Folder say whether the VCH has these for itself. Which they are is known when the appliance is made: their managed
	// object IDs.
	Pool     bool   `json:"pool,omitempty"`
	Folder   bool   `json:"folder,omitempty"`
	PoolID   string `json:"poolID,omitempty"`
	FolderID string `json:"folderID,omitempty"`
	// Changing is what is being done to the VCH, "" most of the time: "create", "configure", "upgrade", "rollback" or "delete". Only vch.json has it.
	Changing string `json:"changing,omitempty"`
}

// recordLimit bounds vch.json.
const recordLimit = 1 << 20

// parseRecord decodes a Record.
func parseRecord(text []byte) (*Record, error) {
	r := new(Record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("parse record of VCH: %w", err)
	}
	if r.Format != recordFormat {
		return nil, fmt.Errorf("the VCH's record has format %d, which this vic-machine does not know", r.Format)
	}
	return r, nil
}

func (r *Record) marshal() ([]byte, error) { return json.Marshal(r) }

// extraConfig is the value of a key, "" if there is none.
func extraConfig(all []types.BaseOptionValue, key string) string {
	i := slices.IndexFunc(all, func(o types.BaseOptionValue) bool { return o.GetOptionValue().Key == key })
	if i < 0 {
		return ""
	}
	s, _ := all[i].GetOptionValue().Value.(string)
	return s
}

package vcsim

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// OutOfSpace is what ESXi asks when a virtual machine writes to a datastore that is full. It has not ended until it is told to.
func OutOfSpace(datastore string) types.VirtualMachineQuestionInfo {
	return types.VirtualMachineQuestionInfo{
		Id: "1", Text: "msg.hbacommon.outofspace:There is no more space for virtual disk disk.vmdk. You might be able to continue this session by freeing disk space on the relevant volume, and clicking _Retry. Click Cancel to terminate this session. [" + datastore + "]",
		Choice: types.ChoiceOption{ChoiceInfo: []types.BaseElementDescription{
			&types.ElementDescription{Key: "0", Description: types.Description{Label: "button.retry", Summary: "Retry"}},
			&types.ElementDescription{Key: "1", Description: types.Description{Label: "button.abort", Summary: "Cancel"}},
		}},
	}
}

// Ask has a virtual machine ask something, as one does that cannot go on: it is powered on, and cannot be powered off until
// somebody has answered. A choice that is called Cancel powers it off.
func (s *Server) Ask(vm types.ManagedObjectReference, q types.VirtualMachineQuestionInfo) error {
	o, ok := s.Service.Context.Map.Get(vm).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("%s is no virtual machine", vm)
	}
	s.setQuestion(o, &q)
	return nil
}

func (s *Server) setQuestion(vm *simulator.VirtualMachine, q *types.VirtualMachineQuestionInfo) {
	ctx := s.Service.Context
	ctx.WithLock(vm, func() {
		vm.Runtime.Question = q
		ctx.Update(vm, nil)
	})
}

// powerOffAsking refuses to power a virtual machine off that asks something.
func (s *Server) powerOffAsking(t *simulator.Task, run func() Outcome) Outcome {
	vm, ok := s.Service.Context.Map.Get(*t.Info.Entity).(*simulator.VirtualMachine)
	if ok && t.Info.DescriptionId == "VirtualMachine.powerOff" && vm.Runtime.Question != nil {
		return Outcome{Fault: &types.InvalidState{}}
	}
	return run()
}

// serveAnswer serves VirtualMachine.AnswerVM.
func (f *front) serveAnswer(w http.ResponseWriter, r *http.Request, envelope []byte) {
	var call struct {
		VM       string `xml:"Body>AnswerVM>_this"`
		Question string `xml:"Body>AnswerVM>questionId"`
		Choice   string `xml:"Body>AnswerVM>answerChoice"`
	}
	ok, err := f.authentic(r)
	if err == nil {
		err = xml.Unmarshal(envelope, &call)
	}
	vm, is := f.s.Service.Context.Map.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: call.VM}).(*simulator.VirtualMachine)
	if err != nil || !ok || !is || vm.Runtime.Question == nil || vm.Runtime.Question.Id != call.Question {
		http.Error(w, "no such question", http.StatusInternalServerError)
		return
	}
	cancels := false
	for _, c := range vm.Runtime.Question.Choice.ChoiceInfo {
		d := c.GetElementDescription()
		cancels = cancels || d.Key == call.Choice && d.Summary == "Cancel"
	}
	f.s.setQuestion(vm, nil)
	if cancels {
		ctx := f.s.Service.Context
		ctx.WithLock(vm, func() { vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self}) })
	}
	w.Header().Set("Content-Type", "text/xml")
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>`+
		`<AnswerVMResponse xmlns="urn:vim25"/></soapenv:Body></soapenv:Envelope>`) // the client may be gone
}

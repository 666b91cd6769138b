package dev.consentd.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Appends events to the ledger that every sidecar follows.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class RecordServiceGrpc {

  private RecordServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "consent.v1.RecordService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.RecordEventRequest,
      dev.consentd.v1.RecordEventResponse> getRecordEventMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RecordEvent",
      requestType = dev.consentd.v1.RecordEventRequest.class,
      responseType = dev.consentd.v1.RecordEventResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.RecordEventRequest,
      dev.consentd.v1.RecordEventResponse> getRecordEventMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.RecordEventRequest, dev.consentd.v1.RecordEventResponse> getRecordEventMethod;
    if ((getRecordEventMethod = RecordServiceGrpc.getRecordEventMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getRecordEventMethod = RecordServiceGrpc.getRecordEventMethod) == null) {
          RecordServiceGrpc.getRecordEventMethod = getRecordEventMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.RecordEventRequest, dev.consentd.v1.RecordEventResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RecordEvent"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.RecordEventRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.RecordEventResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("RecordEvent"))
              .build();
        }
      }
    }
    return getRecordEventMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.RecordEventsRequest,
      dev.consentd.v1.RecordEventsResponse> getRecordEventsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RecordEvents",
      requestType = dev.consentd.v1.RecordEventsRequest.class,
      responseType = dev.consentd.v1.RecordEventsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.RecordEventsRequest,
      dev.consentd.v1.RecordEventsResponse> getRecordEventsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.RecordEventsRequest, dev.consentd.v1.RecordEventsResponse> getRecordEventsMethod;
    if ((getRecordEventsMethod = RecordServiceGrpc.getRecordEventsMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getRecordEventsMethod = RecordServiceGrpc.getRecordEventsMethod) == null) {
          RecordServiceGrpc.getRecordEventsMethod = getRecordEventsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.RecordEventsRequest, dev.consentd.v1.RecordEventsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RecordEvents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.RecordEventsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.RecordEventsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("RecordEvents"))
              .build();
        }
      }
    }
    return getRecordEventsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.ListEventsRequest,
      dev.consentd.v1.ListEventsResponse> getListEventsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListEvents",
      requestType = dev.consentd.v1.ListEventsRequest.class,
      responseType = dev.consentd.v1.ListEventsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.ListEventsRequest,
      dev.consentd.v1.ListEventsResponse> getListEventsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.ListEventsRequest, dev.consentd.v1.ListEventsResponse> getListEventsMethod;
    if ((getListEventsMethod = RecordServiceGrpc.getListEventsMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getListEventsMethod = RecordServiceGrpc.getListEventsMethod) == null) {
          RecordServiceGrpc.getListEventsMethod = getListEventsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.ListEventsRequest, dev.consentd.v1.ListEventsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListEvents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ListEventsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ListEventsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("ListEvents"))
              .build();
        }
      }
    }
    return getListEventsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.ExportEventsRequest,
      dev.consentd.v1.ExportEventsResponse> getExportEventsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ExportEvents",
      requestType = dev.consentd.v1.ExportEventsRequest.class,
      responseType = dev.consentd.v1.ExportEventsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.ExportEventsRequest,
      dev.consentd.v1.ExportEventsResponse> getExportEventsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.ExportEventsRequest, dev.consentd.v1.ExportEventsResponse> getExportEventsMethod;
    if ((getExportEventsMethod = RecordServiceGrpc.getExportEventsMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getExportEventsMethod = RecordServiceGrpc.getExportEventsMethod) == null) {
          RecordServiceGrpc.getExportEventsMethod = getExportEventsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.ExportEventsRequest, dev.consentd.v1.ExportEventsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ExportEvents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ExportEventsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ExportEventsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("ExportEvents"))
              .build();
        }
      }
    }
    return getExportEventsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.CheckEventsRequest,
      dev.consentd.v1.CheckEventsResponse> getCheckEventsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CheckEvents",
      requestType = dev.consentd.v1.CheckEventsRequest.class,
      responseType = dev.consentd.v1.CheckEventsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.CheckEventsRequest,
      dev.consentd.v1.CheckEventsResponse> getCheckEventsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.CheckEventsRequest, dev.consentd.v1.CheckEventsResponse> getCheckEventsMethod;
    if ((getCheckEventsMethod = RecordServiceGrpc.getCheckEventsMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getCheckEventsMethod = RecordServiceGrpc.getCheckEventsMethod) == null) {
          RecordServiceGrpc.getCheckEventsMethod = getCheckEventsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.CheckEventsRequest, dev.consentd.v1.CheckEventsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CheckEvents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.CheckEventsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.CheckEventsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("CheckEvents"))
              .build();
        }
      }
    }
    return getCheckEventsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.ListUserEventsRequest,
      dev.consentd.v1.ListUserEventsResponse> getListUserEventsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListUserEvents",
      requestType = dev.consentd.v1.ListUserEventsRequest.class,
      responseType = dev.consentd.v1.ListUserEventsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.ListUserEventsRequest,
      dev.consentd.v1.ListUserEventsResponse> getListUserEventsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.ListUserEventsRequest, dev.consentd.v1.ListUserEventsResponse> getListUserEventsMethod;
    if ((getListUserEventsMethod = RecordServiceGrpc.getListUserEventsMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getListUserEventsMethod = RecordServiceGrpc.getListUserEventsMethod) == null) {
          RecordServiceGrpc.getListUserEventsMethod = getListUserEventsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.ListUserEventsRequest, dev.consentd.v1.ListUserEventsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListUserEvents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ListUserEventsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ListUserEventsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("ListUserEvents"))
              .build();
        }
      }
    }
    return getListUserEventsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.ListDueOptInsRequest,
      dev.consentd.v1.ListDueOptInsResponse> getListDueOptInsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListDueOptIns",
      requestType = dev.consentd.v1.ListDueOptInsRequest.class,
      responseType = dev.consentd.v1.ListDueOptInsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.ListDueOptInsRequest,
      dev.consentd.v1.ListDueOptInsResponse> getListDueOptInsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.ListDueOptInsRequest, dev.consentd.v1.ListDueOptInsResponse> getListDueOptInsMethod;
    if ((getListDueOptInsMethod = RecordServiceGrpc.getListDueOptInsMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getListDueOptInsMethod = RecordServiceGrpc.getListDueOptInsMethod) == null) {
          RecordServiceGrpc.getListDueOptInsMethod = getListDueOptInsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.ListDueOptInsRequest, dev.consentd.v1.ListDueOptInsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListDueOptIns"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ListDueOptInsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.ListDueOptInsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("ListDueOptIns"))
              .build();
        }
      }
    }
    return getListDueOptInsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.EraseUserRequest,
      dev.consentd.v1.EraseUserResponse> getEraseUserMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "EraseUser",
      requestType = dev.consentd.v1.EraseUserRequest.class,
      responseType = dev.consentd.v1.EraseUserResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.EraseUserRequest,
      dev.consentd.v1.EraseUserResponse> getEraseUserMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.EraseUserRequest, dev.consentd.v1.EraseUserResponse> getEraseUserMethod;
    if ((getEraseUserMethod = RecordServiceGrpc.getEraseUserMethod) == null) {
      synchronized (RecordServiceGrpc.class) {
        if ((getEraseUserMethod = RecordServiceGrpc.getEraseUserMethod) == null) {
          RecordServiceGrpc.getEraseUserMethod = getEraseUserMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.EraseUserRequest, dev.consentd.v1.EraseUserResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "EraseUser"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.EraseUserRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.EraseUserResponse.getDefaultInstance()))
              .setSchemaDescriptor(new RecordServiceMethodDescriptorSupplier("EraseUser"))
              .build();
        }
      }
    }
    return getEraseUserMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static RecordServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<RecordServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<RecordServiceStub>() {
        @java.lang.Override
        public RecordServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new RecordServiceStub(channel, callOptions);
        }
      };
    return RecordServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static RecordServiceBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<RecordServiceBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<RecordServiceBlockingV2Stub>() {
        @java.lang.Override
        public RecordServiceBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new RecordServiceBlockingV2Stub(channel, callOptions);
        }
      };
    return RecordServiceBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static RecordServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<RecordServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<RecordServiceBlockingStub>() {
        @java.lang.Override
        public RecordServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new RecordServiceBlockingStub(channel, callOptions);
        }
      };
    return RecordServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static RecordServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<RecordServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<RecordServiceFutureStub>() {
        @java.lang.Override
        public RecordServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new RecordServiceFutureStub(channel, callOptions);
        }
      };
    return RecordServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Appends events to the ledger that every sidecar follows.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Records one event, and answers once it is durable in the ledger, and in the table of the sidecar
     * that records it. UNAVAILABLE says that it may or may not be recorded: repeat it with the same
     * event_time or request_id.
     * </pre>
     */
    default void recordEvent(dev.consentd.v1.RecordEventRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRecordEventMethod(), responseObserver);
    }

    /**
     * <pre>
     * Records many events over one stream; a rejected event does not stop the others. The headers of
     * the answer, which come before any event is sent, name the ledger: consentd-ledger-id, the same
     * for as long as the ledger lives and of no other ledger; consentd-revision, its last revision.
     * </pre>
     */
    default io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventsRequest> recordEvents(
        io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventsResponse> responseObserver) {
      return io.grpc.stub.ServerCalls.asyncUnimplementedStreamingCall(getRecordEventsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists what was recorded about a pair, oldest first, with its evidence; then, in a last message
     * of its own, what the check of its chain came to. Where the chain does not match, the call ends
     * with DATA_LOSS behind all that is there.
     * </pre>
     */
    default void listEvents(dev.consentd.v1.ListEventsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ListEventsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListEventsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Streams the events of all pairs that are kept, so that recording them elsewhere gives the same
     * answers: those that changed something, up to the ledger's end when asked. Each pair's come oldest
     * recorded first, and so do all of them from a ledger file; Redis keeps them by pair.
     * </pre>
     */
    default void exportEvents(dev.consentd.v1.ExportEventsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ExportEventsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getExportEventsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Tells, event by event, whether what an export said is still what the ledger's histories say:
     * whether each pair's history today extends the one that was exported.
     * </pre>
     */
    default io.grpc.stub.StreamObserver<dev.consentd.v1.CheckEventsRequest> checkEvents(
        io.grpc.stub.StreamObserver<dev.consentd.v1.CheckEventsResponse> responseObserver) {
      return io.grpc.stub.ServerCalls.asyncUnimplementedStreamingCall(getCheckEventsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists everything about one user, over all businesses: each pair's state, then its events as
     * ListEvents tells them. Reads all events once, to find the businesses.
     * </pre>
     */
    default void listUserEvents(dev.consentd.v1.ListUserEventsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ListUserEventsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListUserEventsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists opt-ins that still stand and lapse within a time, in no order: whom to ask again. Reads
     * all records once.
     * </pre>
     */
    default void listDueOptIns(dev.consentd.v1.ListDueOptInsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ListDueOptInsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListDueOptInsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Erases a user: history and identity go, a keyed hash stays so that the user is never messaged.
     * Answers once they have gone from the ledger's records and histories, and the user is suppressed;
     * its log, which names users, forgets by a time that the answer gives. What happened no later than
     * the erase is not recorded any more: a webhook that is sent again leaves no trace. The suppression
     * stands until an event lifts it. Asking again does what may be left to do, and nothing else.
     * </pre>
     */
    default void eraseUser(dev.consentd.v1.EraseUserRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.EraseUserResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getEraseUserMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service RecordService.
   * <pre>
   * Appends events to the ledger that every sidecar follows.
   * </pre>
   */
  public static abstract class RecordServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return RecordServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service RecordService.
   * <pre>
   * Appends events to the ledger that every sidecar follows.
   * </pre>
   */
  public static final class RecordServiceStub
      extends io.grpc.stub.AbstractAsyncStub<RecordServiceStub> {
    private RecordServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected RecordServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new RecordServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Records one event, and answers once it is durable in the ledger, and in the table of the sidecar
     * that records it. UNAVAILABLE says that it may or may not be recorded: repeat it with the same
     * event_time or request_id.
     * </pre>
     */
    public void recordEvent(dev.consentd.v1.RecordEventRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRecordEventMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Records many events over one stream; a rejected event does not stop the others. The headers of
     * the answer, which come before any event is sent, name the ledger: consentd-ledger-id, the same
     * for as long as the ledger lives and of no other ledger; consentd-revision, its last revision.
     * </pre>
     */
    public io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventsRequest> recordEvents(
        io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventsResponse> responseObserver) {
      return io.grpc.stub.ClientCalls.asyncBidiStreamingCall(
          getChannel().newCall(getRecordEventsMethod(), getCallOptions()), responseObserver);
    }

    /**
     * <pre>
     * Lists what was recorded about a pair, oldest first, with its evidence; then, in a last message
     * of its own, what the check of its chain came to. Where the chain does not match, the call ends
     * with DATA_LOSS behind all that is there.
     * </pre>
     */
    public void listEvents(dev.consentd.v1.ListEventsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ListEventsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getListEventsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Streams the events of all pairs that are kept, so that recording them elsewhere gives the same
     * answers: those that changed something, up to the ledger's end when asked. Each pair's come oldest
     * recorded first, and so do all of them from a ledger file; Redis keeps them by pair.
     * </pre>
     */
    public void exportEvents(dev.consentd.v1.ExportEventsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ExportEventsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getExportEventsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Tells, event by event, whether what an export said is still what the ledger's histories say:
     * whether each pair's history today extends the one that was exported.
     * </pre>
     */
    public io.grpc.stub.StreamObserver<dev.consentd.v1.CheckEventsRequest> checkEvents(
        io.grpc.stub.StreamObserver<dev.consentd.v1.CheckEventsResponse> responseObserver) {
      return io.grpc.stub.ClientCalls.asyncBidiStreamingCall(
          getChannel().newCall(getCheckEventsMethod(), getCallOptions()), responseObserver);
    }

    /**
     * <pre>
     * Lists everything about one user, over all businesses: each pair's state, then its events as
     * ListEvents tells them. Reads all events once, to find the businesses.
     * </pre>
     */
    public void listUserEvents(dev.consentd.v1.ListUserEventsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ListUserEventsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getListUserEventsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lists opt-ins that still stand and lapse within a time, in no order: whom to ask again. Reads
     * all records once.
     * </pre>
     */
    public void listDueOptIns(dev.consentd.v1.ListDueOptInsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.ListDueOptInsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getListDueOptInsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Erases a user: history and identity go, a keyed hash stays so that the user is never messaged.
     * Answers once they have gone from the ledger's records and histories, and the user is suppressed;
     * its log, which names users, forgets by a time that the answer gives. What happened no later than
     * the erase is not recorded any more: a webhook that is sent again leaves no trace. The suppression
     * stands until an event lifts it. Asking again does what may be left to do, and nothing else.
     * </pre>
     */
    public void eraseUser(dev.consentd.v1.EraseUserRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.EraseUserResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getEraseUserMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service RecordService.
   * <pre>
   * Appends events to the ledger that every sidecar follows.
   * </pre>
   */
  public static final class RecordServiceBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<RecordServiceBlockingV2Stub> {
    private RecordServiceBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected RecordServiceBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new RecordServiceBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * Records one event, and answers once it is durable in the ledger, and in the table of the sidecar
     * that records it. UNAVAILABLE says that it may or may not be recorded: repeat it with the same
     * event_time or request_id.
     * </pre>
     */
    public dev.consentd.v1.RecordEventResponse recordEvent(dev.consentd.v1.RecordEventRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getRecordEventMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Records many events over one stream; a rejected event does not stop the others. The headers of
     * the answer, which come before any event is sent, name the ledger: consentd-ledger-id, the same
     * for as long as the ledger lives and of no other ledger; consentd-revision, its last revision.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<dev.consentd.v1.RecordEventsRequest, dev.consentd.v1.RecordEventsResponse>
        recordEvents() {
      return io.grpc.stub.ClientCalls.blockingBidiStreamingCall(
          getChannel(), getRecordEventsMethod(), getCallOptions());
    }

    /**
     * <pre>
     * Lists what was recorded about a pair, oldest first, with its evidence; then, in a last message
     * of its own, what the check of its chain came to. Where the chain does not match, the call ends
     * with DATA_LOSS behind all that is there.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.consentd.v1.ListEventsResponse>
        listEvents(dev.consentd.v1.ListEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getListEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Streams the events of all pairs that are kept, so that recording them elsewhere gives the same
     * answers: those that changed something, up to the ledger's end when asked. Each pair's come oldest
     * recorded first, and so do all of them from a ledger file; Redis keeps them by pair.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.consentd.v1.ExportEventsResponse>
        exportEvents(dev.consentd.v1.ExportEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getExportEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Tells, event by event, whether what an export said is still what the ledger's histories say:
     * whether each pair's history today extends the one that was exported.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<dev.consentd.v1.CheckEventsRequest, dev.consentd.v1.CheckEventsResponse>
        checkEvents() {
      return io.grpc.stub.ClientCalls.blockingBidiStreamingCall(
          getChannel(), getCheckEventsMethod(), getCallOptions());
    }

    /**
     * <pre>
     * Lists everything about one user, over all businesses: each pair's state, then its events as
     * ListEvents tells them. Reads all events once, to find the businesses.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.consentd.v1.ListUserEventsResponse>
        listUserEvents(dev.consentd.v1.ListUserEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getListUserEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists opt-ins that still stand and lapse within a time, in no order: whom to ask again. Reads
     * all records once.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.consentd.v1.ListDueOptInsResponse>
        listDueOptIns(dev.consentd.v1.ListDueOptInsRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getListDueOptInsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Erases a user: history and identity go, a keyed hash stays so that the user is never messaged.
     * Answers once they have gone from the ledger's records and histories, and the user is suppressed;
     * its log, which names users, forgets by a time that the answer gives. What happened no later than
     * the erase is not recorded any more: a webhook that is sent again leaves no trace. The suppression
     * stands until an event lifts it. Asking again does what may be left to do, and nothing else.
     * </pre>
     */
    public dev.consentd.v1.EraseUserResponse eraseUser(dev.consentd.v1.EraseUserRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getEraseUserMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service RecordService.
   * <pre>
   * Appends events to the ledger that every sidecar follows.
   * </pre>
   */
  public static final class RecordServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<RecordServiceBlockingStub> {
    private RecordServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected RecordServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new RecordServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Records one event, and answers once it is durable in the ledger, and in the table of the sidecar
     * that records it. UNAVAILABLE says that it may or may not be recorded: repeat it with the same
     * event_time or request_id.
     * </pre>
     */
    public dev.consentd.v1.RecordEventResponse recordEvent(dev.consentd.v1.RecordEventRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRecordEventMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists what was recorded about a pair, oldest first, with its evidence; then, in a last message
     * of its own, what the check of its chain came to. Where the chain does not match, the call ends
     * with DATA_LOSS behind all that is there.
     * </pre>
     */
    public java.util.Iterator<dev.consentd.v1.ListEventsResponse> listEvents(
        dev.consentd.v1.ListEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getListEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Streams the events of all pairs that are kept, so that recording them elsewhere gives the same
     * answers: those that changed something, up to the ledger's end when asked. Each pair's come oldest
     * recorded first, and so do all of them from a ledger file; Redis keeps them by pair.
     * </pre>
     */
    public java.util.Iterator<dev.consentd.v1.ExportEventsResponse> exportEvents(
        dev.consentd.v1.ExportEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getExportEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists everything about one user, over all businesses: each pair's state, then its events as
     * ListEvents tells them. Reads all events once, to find the businesses.
     * </pre>
     */
    public java.util.Iterator<dev.consentd.v1.ListUserEventsResponse> listUserEvents(
        dev.consentd.v1.ListUserEventsRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getListUserEventsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists opt-ins that still stand and lapse within a time, in no order: whom to ask again. Reads
     * all records once.
     * </pre>
     */
    public java.util.Iterator<dev.consentd.v1.ListDueOptInsResponse> listDueOptIns(
        dev.consentd.v1.ListDueOptInsRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getListDueOptInsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Erases a user: history and identity go, a keyed hash stays so that the user is never messaged.
     * Answers once they have gone from the ledger's records and histories, and the user is suppressed;
     * its log, which names users, forgets by a time that the answer gives. What happened no later than
     * the erase is not recorded any more: a webhook that is sent again leaves no trace. The suppression
     * stands until an event lifts it. Asking again does what may be left to do, and nothing else.
     * </pre>
     */
    public dev.consentd.v1.EraseUserResponse eraseUser(dev.consentd.v1.EraseUserRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getEraseUserMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service RecordService.
   * <pre>
   * Appends events to the ledger that every sidecar follows.
   * </pre>
   */
  public static final class RecordServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<RecordServiceFutureStub> {
    private RecordServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected RecordServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new RecordServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Records one event, and answers once it is durable in the ledger, and in the table of the sidecar
     * that records it. UNAVAILABLE says that it may or may not be recorded: repeat it with the same
     * event_time or request_id.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.consentd.v1.RecordEventResponse> recordEvent(
        dev.consentd.v1.RecordEventRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRecordEventMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Erases a user: history and identity go, a keyed hash stays so that the user is never messaged.
     * Answers once they have gone from the ledger's records and histories, and the user is suppressed;
     * its log, which names users, forgets by a time that the answer gives. What happened no later than
     * the erase is not recorded any more: a webhook that is sent again leaves no trace. The suppression
     * stands until an event lifts it. Asking again does what may be left to do, and nothing else.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.consentd.v1.EraseUserResponse> eraseUser(
        dev.consentd.v1.EraseUserRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getEraseUserMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_RECORD_EVENT = 0;
  private static final int METHODID_LIST_EVENTS = 1;
  private static final int METHODID_EXPORT_EVENTS = 2;
  private static final int METHODID_LIST_USER_EVENTS = 3;
  private static final int METHODID_LIST_DUE_OPT_INS = 4;
  private static final int METHODID_ERASE_USER = 5;
  private static final int METHODID_RECORD_EVENTS = 6;
  private static final int METHODID_CHECK_EVENTS = 7;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_RECORD_EVENT:
          serviceImpl.recordEvent((dev.consentd.v1.RecordEventRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventResponse>) responseObserver);
          break;
        case METHODID_LIST_EVENTS:
          serviceImpl.listEvents((dev.consentd.v1.ListEventsRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.ListEventsResponse>) responseObserver);
          break;
        case METHODID_EXPORT_EVENTS:
          serviceImpl.exportEvents((dev.consentd.v1.ExportEventsRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.ExportEventsResponse>) responseObserver);
          break;
        case METHODID_LIST_USER_EVENTS:
          serviceImpl.listUserEvents((dev.consentd.v1.ListUserEventsRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.ListUserEventsResponse>) responseObserver);
          break;
        case METHODID_LIST_DUE_OPT_INS:
          serviceImpl.listDueOptIns((dev.consentd.v1.ListDueOptInsRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.ListDueOptInsResponse>) responseObserver);
          break;
        case METHODID_ERASE_USER:
          serviceImpl.eraseUser((dev.consentd.v1.EraseUserRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.EraseUserResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_RECORD_EVENTS:
          return (io.grpc.stub.StreamObserver<Req>) serviceImpl.recordEvents(
              (io.grpc.stub.StreamObserver<dev.consentd.v1.RecordEventsResponse>) responseObserver);
        case METHODID_CHECK_EVENTS:
          return (io.grpc.stub.StreamObserver<Req>) serviceImpl.checkEvents(
              (io.grpc.stub.StreamObserver<dev.consentd.v1.CheckEventsResponse>) responseObserver);
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getRecordEventMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.consentd.v1.RecordEventRequest,
              dev.consentd.v1.RecordEventResponse>(
                service, METHODID_RECORD_EVENT)))
        .addMethod(
          getRecordEventsMethod(),
          io.grpc.stub.ServerCalls.asyncBidiStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.RecordEventsRequest,
              dev.consentd.v1.RecordEventsResponse>(
                service, METHODID_RECORD_EVENTS)))
        .addMethod(
          getListEventsMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.ListEventsRequest,
              dev.consentd.v1.ListEventsResponse>(
                service, METHODID_LIST_EVENTS)))
        .addMethod(
          getExportEventsMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.ExportEventsRequest,
              dev.consentd.v1.ExportEventsResponse>(
                service, METHODID_EXPORT_EVENTS)))
        .addMethod(
          getCheckEventsMethod(),
          io.grpc.stub.ServerCalls.asyncBidiStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.CheckEventsRequest,
              dev.consentd.v1.CheckEventsResponse>(
                service, METHODID_CHECK_EVENTS)))
        .addMethod(
          getListUserEventsMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.ListUserEventsRequest,
              dev.consentd.v1.ListUserEventsResponse>(
                service, METHODID_LIST_USER_EVENTS)))
        .addMethod(
          getListDueOptInsMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.ListDueOptInsRequest,
              dev.consentd.v1.ListDueOptInsResponse>(
                service, METHODID_LIST_DUE_OPT_INS)))
        .addMethod(
          getEraseUserMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.consentd.v1.EraseUserRequest,
              dev.consentd.v1.EraseUserResponse>(
                service, METHODID_ERASE_USER)))
        .build();
  }

  private static abstract class RecordServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    RecordServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.consentd.v1.RecordServiceOuterClass.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("RecordService");
    }
  }

  private static final class RecordServiceFileDescriptorSupplier
      extends RecordServiceBaseDescriptorSupplier {
    RecordServiceFileDescriptorSupplier() {}
  }

  private static final class RecordServiceMethodDescriptorSupplier
      extends RecordServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    RecordServiceMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (RecordServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new RecordServiceFileDescriptorSupplier())
              .addMethod(getRecordEventMethod())
              .addMethod(getRecordEventsMethod())
              .addMethod(getListEventsMethod())
              .addMethod(getExportEventsMethod())
              .addMethod(getCheckEventsMethod())
              .addMethod(getListUserEventsMethod())
              .addMethod(getListDueOptInsMethod())
              .addMethod(getEraseUserMethod())
              .build();
        }
      }
    }
    return result;
  }
}
